//! cdk's HTTP transport over a [`Line`]: cdk's wallet does not notice.

use std::sync::Arc;

use async_trait::async_trait;
use cdk::mint_url::MintUrl;
use cdk::nuts::{AuthToken, MintInfo};
use cdk::wallet::HttpTransport;
use cdk_common::{HttpError, RawResponse};
use hashpit_nips::eh07::Method;
use nostr_sdk::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::Line;

/// One mint's API through its pool's relays.
#[derive(Debug, Clone)]
pub(crate) struct NostrTransport {
    line: Line,
    mint: MintUrl,
    /// What the pool knows the mint by; paths begin with it.
    below: &'static str,
    /// Set once the pool has said that this is its mint.
    checked: Arc<OnceCell<()>>,
}

impl NostrTransport {
    /// Of the mint that is known by `mint` and run by the line's pool.
    pub(crate) fn new(line: Line, mint: MintUrl, below: &'static str) -> Self {
        Self { line, mint, below, checked: Arc::default() }
    }

    async fn call(
        &self,
        method: Method,
        url: &Url,
        body: Option<Value>,
    ) -> Result<RawResponse, HttpError> {
        self.checked.get_or_try_init(|| self.check()).await?;
        self.send(method, &self.path(url)?, body).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<RawResponse, HttpError> {
        let asked = self.line.request(method, format!("{}{path}", self.below), body).await;
        let response = asked.map_err(|error| HttpError::Other(error.to_string()))?;
        // The gateway's own refusals are words; the mint's are NUT-00's objects.
        let body = match response.body {
            Value::String(words) => words.into_bytes(),
            json => json.to_string().into_bytes(),
        };
        Ok(RawResponse::new(response.status, body))
    }

    /// Proofs are kept under the mint's URL, and later shown to whoever answers
    /// there: so it must be a URL that the pool itself names.
    async fn check(&self) -> Result<(), HttpError> {
        let info = self.send(Method::Get, "/v1/info", None).await?;
        let info: MintInfo = info.json_or_status_error()?;
        let urls = info.urls.unwrap_or_default();
        let ours = |url: &String| url.parse::<MintUrl>().is_ok_and(|url| url == self.mint);
        if urls.iter().any(ours) {
            return Ok(());
        }
        Err(HttpError::Other(format!(
            "the pool that should run the mint {} says that its mint is {}; \
             if it has moved, claim from the pool once more",
            self.mint,
            urls.join(", ")
        )))
    }

    /// Below the mint's URL.
    fn path(&self, url: &Url) -> Result<String, HttpError> {
        let foreign = || HttpError::Other(format!("{url} is not of the mint {}", self.mint));
        let path = url.as_str().strip_prefix(self.mint.to_string().trim_end_matches('/'));
        path.map(str::to_owned).ok_or_else(foreign)
    }
}

#[async_trait]
impl HttpTransport for NostrTransport {
    fn with_proxy(&mut self, _: Url, _: Option<&str>, _: bool) -> Result<(), HttpError> {
        Err(HttpError::Proxy("relays are not reached through an HTTP proxy".to_owned()))
    }

    async fn http_get<R>(&self, url: Url, auth: Option<AuthToken>) -> Result<R, HttpError>
    where
        R: DeserializeOwned,
    {
        self.http_get_raw(url, auth).await?.json_or_status_error()
    }

    async fn http_get_raw(
        &self,
        url: Url,
        _auth: Option<AuthToken>,
    ) -> Result<RawResponse, HttpError> {
        self.call(Method::Get, &url, None).await
    }

    async fn http_post<P, R>(
        &self,
        url: Url,
        _auth: Option<AuthToken>,
        payload: &P,
    ) -> Result<R, HttpError>
    where
        P: Serialize + Send + Sync,
        R: DeserializeOwned,
    {
        let body = serde_json::to_value(payload)?;
        self.call(Method::Post, &url, Some(body)).await?.json_or_status_error()
    }

    async fn http_post_form_raw<P>(
        &self,
        url: Url,
        _auth: Option<AuthToken>,
        _payload: &P,
    ) -> Result<RawResponse, HttpError>
    where
        P: Serialize + Send + Sync,
    {
        Err(HttpError::Other(format!("{url} takes a form, which is not carried over Nostr")))
    }
}
