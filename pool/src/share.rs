//! What passes between the mining front end and the ledger: a share that met
//! its target, and the ledger's verdict on it.

use hashpit_nips::Work;
use nostr_sdk::PublicKey;
use tokio::sync::mpsc;

/// A share that met the target of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whom the work is credited to.
    pub miner: PublicKey,
    /// Hash of the 80-byte header, in internal (little-endian) byte order.
    pub header_hash: [u8; 32],
    /// Expected hashes of the target that the share was set.
    pub work: Work,
}

/// Which submission a verdict answers, in the words of the connection that
/// made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Sv2 channel id.
    pub channel_id: u32,
    /// Sv2 sequence number of the submission.
    pub sequence_number: u32,
    /// The share's work, so that an acknowledgement can sum it.
    pub work: Work,
}

/// A share on its way to the ledger, with the way back.
///
/// `reply` must have room for every submission that its connection has in
/// flight: the ledger never waits for a connection.
#[derive(Debug)]
pub struct Submission {
    /// The share.
    pub share: Share,
    /// What the verdict will carry.
    pub ticket: Ticket,
    /// Where the verdict goes.
    pub reply: mpsc::Sender<Verdict>,
}

/// The ledger's word on a share; sent only once it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The submission that it answers.
    pub ticket: Ticket,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Credited, durably.
    Recorded,
    /// This header hash was credited before, perhaps before a restart.
    Duplicate,
}
