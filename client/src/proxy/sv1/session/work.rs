//! What the pool says, and the device's shares on their way to it.

use std::sync::Arc;

use bitcoin::Target;
use hashpit_nips::Work;
use serde_json::{Value, json};
use stratum_apps::stratum_core::sv1_api::json_rpc::Message;

use super::{Session, SessionError, Source, Subscription, Ticket};
use crate::proxy::shares::Waiting;
use crate::proxy::stats::Worker;
use crate::proxy::sv1::MIN_EXTRANONCE2;
use crate::proxy::sv1::difficulty::Difficulty;
use crate::proxy::sv1::feed::{Event, Share};
use crate::proxy::sv1::judge::{Refusal, Verdict};
use crate::proxy::sv1::request::Submit;
use crate::proxy::sv1::vardiff::LocalTarget;
use crate::proxy::work::{Extranonce, Job};

impl Session {
    pub(super) fn take(&mut self, event: Event<Ticket>) -> Result<(), SessionError> {
        match event {
            Event::Opened { prefix, size } => return self.opened(prefix, size),
            Event::Job { job, clean } => self.job(job, clean),
            Event::Accepted(shares) => {
                for Waiting { work, ticket, .. } in shares {
                    self.in_flight = self.in_flight.saturating_sub(1);
                    self.refusals.accepted();
                    ticket.worker.accepted(work);
                    if let Some(id) = ticket.id {
                        self.reply(id, Value::Bool(true));
                    }
                }
            }
            Event::Rejected(share, code) => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.refusals.refused(&code);
                self.reject(share.ticket, &Refusal::of_pool(code));
                if self.refusals.are_too_many() {
                    return Err(SessionError::WrongShares);
                }
            }
            Event::Lost(shares) => self.lost(shares),
            Event::Refused(reason) => {
                if let Subscription::Opening(id) = &self.subscription {
                    let refusal = Refusal::new(20, format!("the pool opens no channel: {reason}"));
                    self.refuse(id.clone(), &refusal);
                }
                return Err(SessionError::Refused(reason));
            }
        }
        Ok(())
    }

    pub(super) fn opened(&mut self, prefix: Vec<u8>, size: usize) -> Result<(), SessionError> {
        let extranonce = self.divide(prefix, size)?;
        let changed = self.extranonce.as_deref() != Some(&extranonce);
        self.extranonce = Some(Arc::new(extranonce));
        match std::mem::replace(&mut self.subscription, Subscription::Done) {
            Subscription::Opening(id) => {
                self.subscribed(id);
                for id in std::mem::take(&mut self.authorized) {
                    self.reply(id, Value::Bool(true));
                }
            }
            _ if !changed => {}
            _ if self.takes_extranonce => {
                let (first, rolled) = self.extranonce_parts();
                self.notify("mining.set_extranonce", json!([first, rolled]));
            }
            _ => {
                // Most devices come back at once, and are then told.
                self.notify("client.reconnect", json!([]));
                return Err(SessionError::ExtranonceChanged);
            }
        }
        Ok(())
    }

    /// Which bytes of the extranonce are whose.
    pub(super) fn divide(&self, prefix: Vec<u8>, size: usize) -> Result<Extranonce, SessionError> {
        let slot = match &self.source {
            Some(Source::Seat(seat)) => seat.slot().to_vec(),
            _ => Vec::new(),
        };
        let room = size.saturating_sub(slot.len());
        let rolled = room.min(self.sv1.settings.extranonce2_bytes);
        if rolled < MIN_EXTRANONCE2 {
            return Err(SessionError::Refused(format!("only {size} bytes of extranonce")));
        }
        let mut fixed = vec![0; room - rolled];
        fixed.extend(slot);
        Ok(Extranonce { prefix, fixed, rolled })
    }

    pub(super) fn extranonce_parts(&self) -> (String, usize) {
        let extranonce = self.extranonce.as_ref();
        extranonce.map_or((String::new(), 0), |e| (hex(&e.first()), e.rolled))
    }

    pub(super) fn subscribed(&mut self, id: Value) {
        let (first, rolled) = self.extranonce_parts();
        let subscriptions = json!([["mining.set_difficulty", "1"], ["mining.notify", "1"]]);
        self.reply(id, json!([subscriptions, first, rolled]));
    }

    pub(super) fn job(&mut self, job: Arc<Job>, clean: bool) {
        let first = self.newest.is_none();
        self.newest = Some(Arc::clone(&job));
        if self.is_ready() {
            self.give(job, clean || first);
        }
    }

    /// Gives the newest job, if the device has none yet.
    pub(super) fn work(&mut self) {
        if let Some(job) = self.newest.clone().filter(|_| self.is_ready()) {
            self.give(job, true);
        }
    }

    pub(super) fn give(&mut self, job: Arc<Job>, clean: bool) {
        let Some(extranonce) = self.extranonce.clone() else { return };
        if clean {
            self.judge.clear();
        }
        self.set_difficulty();
        self.set_version_mask(&job);
        let name = self.judge.issue(Arc::clone(&job), extranonce);
        if let Some(notify) = job.notify(&name, clean) {
            let message: Message = notify.into();
            self.out.push_back(serde_json::to_value(message).unwrap_or_default());
        }
    }

    /// Tells whether a job's version may be rolled, if that is news.
    pub(super) fn set_version_mask(&mut self, job: &Job) {
        let mask = if job.version_rolling { self.mask } else { 0 };
        if std::mem::replace(&mut self.told_mask, mask) != mask {
            self.notify("mining.set_version_mask", json!([format!("{mask:08x}")]));
        }
    }

    /// Tells the difficulty of the newest job, if it is another.
    pub(super) fn set_difficulty(&mut self) {
        let Some(job) = &self.newest else { return };
        let mut target = job.target;
        if let Some(local) = &self.local {
            let minimum = self.minimum.map(Difficulty::target);
            let wanted = minimum.map_or(local.target(), |minimum| minimum.min(local.target()));
            // A share that the pool takes is never held back.
            target = target.max(wanted);
        }
        let mut difficulty = Difficulty::of_target(target);
        if self.sv1.settings.power_of_two_difficulty {
            difficulty = difficulty.power_of_two();
        }
        if self.difficulty.replace(difficulty) != Some(difficulty) {
            self.notify("mining.set_difficulty", json!([difficulty.json()]));
        }
    }

    pub(super) fn retarget(&mut self) {
        if self.is_ready() && self.local.as_mut().is_some_and(LocalTarget::adjust) {
            self.set_difficulty();
        }
    }

    pub(super) fn lost(&mut self, shares: Vec<Waiting<Ticket>>) {
        self.judge.clear();
        self.newest = None;
        for Waiting { ticket, .. } in shares {
            self.in_flight = self.in_flight.saturating_sub(1);
            ticket.worker.unknown();
            if let Some(id) = ticket.id {
                let reason = "unknown: the connection to the pool ended before its answer";
                self.refuse(id, &Refusal::new(20, reason));
            }
        }
    }

    pub(super) async fn submit(&mut self, id: Value, share: Submit) -> Result<(), SessionError> {
        let user = self.users.iter().find(|user| user.name == share.user);
        // Some devices submit under another name than they were authorized as.
        let Some(user) = user.or(self.users.first()) else {
            self.refuse(id, &Refusal::new(24, "not authorized; send mining.authorize first"));
            return Ok(());
        };
        let (worker, label) = (Arc::clone(&user.worker), Arc::clone(&user.label));
        let ticket = Ticket::new(id, worker);
        if !matches!(self.subscription, Subscription::Done) {
            self.reject(ticket, &Refusal::new(25, "not subscribed; send mining.subscribe first"));
            return Ok(());
        }
        if self.newest.is_none() {
            self.reject(ticket, &Refusal::new(21, "stale: there is no connection to the pool"));
            return Ok(());
        }
        match self.judge.judge(&share, self.mask, self.local_target()) {
            Err(refusal) => self.reject(ticket, &refusal),
            Ok(Verdict::Local) => {
                self.found(&ticket.worker, None);
                ticket.worker.local();
                self.reply(ticket.id.unwrap_or_default(), Value::Bool(true));
            }
            Ok(Verdict::ForPool { job, extranonce, found }) => {
                self.found(&ticket.worker, Some(&job));
                let share = Share { job, extranonce, found, worker: label, ticket };
                self.forward(share).await;
            }
        }
        Ok(())
    }

    /// The target that a share has to meet for the device's own difficulty,
    /// where that is another than the pool's.
    pub(super) fn local_target(&self) -> Option<Target> {
        let settings = &self.sv1.settings;
        let own = settings.aggregate || settings.power_of_two_difficulty;
        self.difficulty.filter(|_| own).map(Difficulty::target)
    }

    pub(super) fn found(&mut self, worker: &Worker, job: Option<&Job>) {
        let target = self.local_target().or(job.map(|job| job.target));
        if let Some(Ok(work)) = target.map(Work::of_target) {
            worker.found(work);
        }
        if let Some(local) = &mut self.local {
            local.found_share();
        }
    }

    pub(super) async fn forward(&mut self, mut share: Share<Ticket>) {
        if self.sv1.settings.optimistic
            && let Some(id) = share.ticket.id.take()
        {
            self.reply(id, Value::Bool(true));
        }
        self.in_flight += 1;
        let gone = match &mut self.source {
            Some(Source::Own(feed)) => feed.submit(share).await.err(),
            Some(Source::Seat(seat)) => {
                seat.submit(share).await;
                None
            }
            None => Some(share.ticket),
        };
        if let Some(ticket) = gone {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.reject(ticket, &Refusal::new(21, "stale: there is no connection to the pool"));
        }
    }

    pub(super) fn reject(&mut self, ticket: Ticket, refusal: &Refusal) {
        ticket.worker.rejected(&refusal.reason);
        if let Some(id) = ticket.id {
            self.refuse(id, refusal);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
