//! cdk's HTTP transport, with an end to waiting: cdk itself waits for ever for an
//! answer that a mint, or what stands before it, has lost.

use std::time::Duration;

use async_trait::async_trait;
use cdk::nuts::AuthToken;
use cdk::wallet::HttpTransport;
use cdk_common::{HttpError, RawResponse};
use cdk_http_client::Async;
use nostr_sdk::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// How long an answer may take. What it would have said is unknown then, and asked
/// again.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same where the mint pays by Lightning before it answers.
const PAYING: Duration = Duration::from_secs(120);

/// HTTP.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patient(Async);

/// Waits for an answer, but not for ever.
async fn within<T>(
    url: &Url,
    answer: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    let patience = if url.path().contains("/melt/") { PAYING } else { PATIENCE };
    timeout(patience, answer).await.unwrap_or(Err(HttpError::Timeout))
}

#[async_trait]
impl HttpTransport for Patient {
    fn with_proxy(
        &mut self,
        proxy: Url,
        host_matcher: Option<&str>,
        accept_invalid_certs: bool,
    ) -> Result<(), HttpError> {
        self.0.with_proxy(proxy, host_matcher, accept_invalid_certs)
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
        auth: Option<AuthToken>,
    ) -> Result<RawResponse, HttpError> {
        within(&url, self.0.http_get_raw(url.clone(), auth)).await
    }

    async fn http_post<P, R>(
        &self,
        url: Url,
        auth: Option<AuthToken>,
        payload: &P,
    ) -> Result<R, HttpError>
    where
        P: Serialize + Send + Sync,
        R: DeserializeOwned,
    {
        // The answer alone is waited for; R need not be Send.
        let answer = self.0.http_post::<P, serde_json::Value>(url.clone(), auth, payload);
        let answer = within(&url, answer).await?;
        serde_json::from_value(answer).map_err(|error| HttpError::Serialization(error.to_string()))
    }

    async fn http_post_form_raw<P>(
        &self,
        url: Url,
        auth: Option<AuthToken>,
        payload: &P,
    ) -> Result<RawResponse, HttpError>
    where
        P: Serialize + Send + Sync,
    {
        within(&url, self.0.http_post_form_raw(url.clone(), auth, payload)).await
    }
}
