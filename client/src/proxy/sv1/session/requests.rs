//! What a device asks, and what it is answered at once.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::Target;
use hashpit_nips::Work;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Session, SessionError, Source, Subscription, User};
use crate::proxy::identity::worker_name;
use crate::proxy::settings::SUGGESTED_SHARES_PER_MINUTE;
use crate::proxy::sv1::difficulty::Difficulty;
use crate::proxy::sv1::feed::Feed;
use crate::proxy::sv1::judge::Refusal;
use crate::proxy::sv1::request::{self, Call, Configure};

/// How long the answer to `mining.subscribe` waits for `mining.authorize`.
const NAME_GRACE: Duration = Duration::from_millis(100);
/// The bits of a version that may be rolled (BIP 320).
const ROLLABLE: u32 = 0x1fff_e000;
/// Events from the pool that wait for a device: a refusal for each share in
/// flight, and jobs.
const FEED_QUEUE: usize = 256;
/// Workers that may be authorized on one connection.
const MAX_USERS: usize = 8;
/// Lines without sense before a device is dropped.
const MAX_STRIKES: u32 = 10;

impl Session {
    pub(super) async fn answer(&mut self, line: &[u8]) -> Result<(), SessionError> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let Some(request::Request { id, call }) = request::parse(line) else {
            return self.strike();
        };
        match call {
            Call::Subscribe { agent } => return self.subscribe(id, &agent).await,
            Call::Authorize { user } => return self.authorize(id, user).await,
            Call::Submit(share) => return self.submit(id, share).await,
            Call::Configure(asked) => {
                let agreed = self.configure(asked).await;
                self.reply(id, agreed);
            }
            Call::SuggestDifficulty(number) => {
                self.suggest(Difficulty::of_number(number)).await;
                self.reply(id, Value::Bool(true));
            }
            Call::SuggestTarget(target) => {
                let target = Target::from_le_bytes(target);
                let sane = Work::of_target(target).is_ok();
                self.suggest(sane.then(|| Difficulty::of_target(target))).await;
                self.reply(id, Value::Bool(true));
            }
            Call::ExtranonceSubscribe => {
                self.takes_extranonce = true;
                self.reply(id, Value::Bool(true));
            }
            // An Antminer's way to ask for several versions; the mask is
            // agreed on by mining.configure.
            Call::MultiVersion => self.reply(id, Value::Bool(true)),
            Call::Ping => self.reply(id, Value::from("pong")),
            Call::Unknown(method) => {
                self.refuse(id, &Refusal::new(20, format!("method {method} not found")));
            }
            Call::Invalid(reason) => {
                self.refuse(id, &Refusal::new(20, reason));
                return self.strike();
            }
            Call::Nothing => {}
        }
        Ok(())
    }

    pub(super) fn strike(&mut self) -> Result<(), SessionError> {
        self.strikes += 1;
        if self.strikes >= MAX_STRIKES {
            return Err(SessionError::Junk);
        }
        Ok(())
    }

    pub(super) fn reply(&mut self, id: Value, result: Value) {
        self.out.push_back(json!({ "id": id, "result": result, "error": null }));
    }

    pub(super) fn refuse(&mut self, id: Value, Refusal { code, reason }: &Refusal) {
        self.out.push_back(json!({ "id": id, "result": null, "error": [code, reason, null] }));
    }

    pub(super) fn notify(&mut self, method: &str, params: Value) {
        self.out.push_back(json!({ "id": null, "method": method, "params": params }));
    }

    pub(super) async fn subscribe(&mut self, id: Value, agent: &str) -> Result<(), SessionError> {
        match &self.subscription {
            Subscription::None => {
                tracing::debug!(agent, "a device subscribes");
                let named = !self.users.is_empty();
                let patience = if named { Duration::ZERO } else { NAME_GRACE };
                self.subscription = Subscription::Asked(id, Instant::now() + patience);
                if named { self.open().await } else { Ok(()) }
            }
            Subscription::Done => {
                self.subscribed(id);
                Ok(())
            }
            Subscription::Asked(..) | Subscription::Opening(_) => {
                self.refuse(id, &Refusal::new(20, "mining.subscribe is being answered"));
                self.strike()
            }
        }
    }

    /// Asks for a channel, or for a place on the common one.
    pub(super) async fn open(&mut self) -> Result<(), SessionError> {
        let Subscription::Asked(id, _) =
            std::mem::replace(&mut self.subscription, Subscription::None)
        else {
            return Ok(());
        };
        self.subscription = Subscription::Opening(id);
        let sv1 = Arc::clone(&self.sv1);
        self.source = Some(match &sv1.aggregate {
            Some(aggregate) => {
                let seat = aggregate.join().await;
                Source::Seat(seat.ok_or_else(|| SessionError::Refused("no place left".into()))?)
            }
            None => {
                let worker = self.users.first().map(|user| &*user.label);
                let request = sv1.request(worker, self.hashrate, self.max_target());
                Source::Own(Box::new(Feed::open(&sv1.upstream, request, FEED_QUEUE).await))
            }
        });
        Ok(())
    }

    pub(super) fn max_target(&self) -> [u8; 32] {
        self.minimum.map_or([0xff; 32], |minimum| minimum.target().to_le_bytes())
    }

    pub(super) async fn authorize(&mut self, id: Value, user: String) -> Result<(), SessionError> {
        let known = self.users.iter().any(|known| known.name == user);
        if !known && self.users.len() == MAX_USERS {
            self.refuse(id, &Refusal::new(24, "too many workers on one connection"));
            return Ok(());
        }
        if !known {
            let label: Arc<str> = worker_name(&user).into();
            let worker = self.sv1.workers.named(&label);
            tracing::info!(worker = &*label, "a device is authorized");
            let connected = worker.connected();
            self.users.push(User { name: user, label, worker, _connected: connected });
        }
        match self.subscription {
            Subscription::Asked(..) => {
                self.authorized.push(id);
                self.open().await
            }
            Subscription::Opening(_) => {
                self.authorized.push(id);
                Ok(())
            }
            Subscription::None | Subscription::Done => {
                self.reply(id, Value::Bool(true));
                self.work();
                Ok(())
            }
        }
    }

    pub(super) async fn configure(&mut self, asked: Configure) -> Value {
        let mut agreed = serde_json::Map::new();
        let mut put = |name: &str, value: Value| drop(agreed.insert(name.to_owned(), value));
        if let Some(mask) = asked.version_rolling {
            let mask = mask & ROLLABLE;
            let enough = mask != 0 && mask.count_ones() >= asked.min_bits;
            self.mask = if enough { mask } else { 0 };
            self.told_mask = self.mask;
            put("version-rolling", Value::Bool(enough));
            put("version-rolling.mask", Value::from(format!("{:08x}", self.mask)));
        }
        if let Some(minimum) = asked.minimum_difficulty {
            let minimum = Difficulty::of_number(minimum);
            put("minimum-difficulty", Value::Bool(minimum.is_some()));
            self.minimum = minimum.or(self.minimum);
        }
        if asked.subscribe_extranonce {
            self.takes_extranonce = true;
            put("subscribe-extranonce", Value::Bool(true));
        }
        if asked.info {
            put("info", Value::Bool(true));
        }
        for unknown in &asked.unknown {
            put(unknown, Value::Bool(false));
        }
        if asked.minimum_difficulty.is_some() {
            self.tell_pool().await;
        }
        Value::Object(agreed)
    }

    /// A difficulty that a device suggests tells its hash rate.
    pub(super) async fn suggest(&mut self, difficulty: Option<Difficulty>) {
        let Some(difficulty) = difficulty else { return };
        let hashes = difficulty.number() * 2f64.powi(32);
        self.hashrate = (hashes * SUGGESTED_SHARES_PER_MINUTE / 60.0).clamp(1.0, 1e24) as f32;
        if let Some(local) = &mut self.local {
            local.set_hashrate(self.hashrate);
            self.set_difficulty();
        }
        self.tell_pool().await;
    }

    pub(super) async fn tell_pool(&self) {
        if let Some(Source::Own(feed)) = &self.source {
            feed.update(self.hashrate, self.max_target()).await;
        }
    }
}
