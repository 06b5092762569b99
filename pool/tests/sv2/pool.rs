//! A front end on a free port, with a hand on its templates and its ledger.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bitcoin::{ScriptBuf, Target};
use hashpit_pool::share::{Outcome, Submission, Verdict};
use hashpit_pool::sv2::{self, Authority, Config, Front, Stats};
use hashpit_pool::template::embedded::system_clock;
use hashpit_pool::template::{
    CurrentTemplate, EmbeddedChain, EmbeddedConfig, SubmitError, TemplateSource,
};
use stratum_apps::stratum_core::template_distribution_sv2::SubmitSolutionOwned;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Room in the ledger's queue.
const QUEUE: usize = 4;

/// Templates as a test wants them; blocks are refused.
#[derive(Debug)]
pub(crate) struct Templates {
    current: watch::Sender<Arc<CurrentTemplate>>,
    pub(crate) solutions: Mutex<Vec<SubmitSolutionOwned>>,
}

impl Templates {
    /// A tip at which nobody finds a block.
    pub(crate) fn new() -> Arc<Self> {
        Self::at("1d00ffff")
    }

    pub(crate) fn at(bits: &str) -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig { bits: bits.parse().unwrap(), ..EmbeddedConfig::default() };
        let path = directory.path().join("blocks.dat");
        let (chain, _task) = EmbeddedChain::open(config, &path, system_clock()).unwrap();
        let first = chain.subscribe().borrow().clone();
        Arc::new(Self { current: watch::channel(first).0, solutions: Mutex::default() })
    }

    /// The next template, after `change`.
    pub(crate) fn next(&self, change: impl FnOnce(&mut CurrentTemplate)) {
        self.current.send_modify(|current| {
            let mut next = (**current).clone();
            next.template.template_id += 1;
            next.prev_hash.template_id += 1;
            change(&mut next);
            *current = Arc::new(next);
        });
    }

    pub(crate) fn new_tip(&self) {
        self.next(|next| {
            let mut hash = next.prev_hash.prev_hash.to_array();
            hash[0] = hash[0].wrapping_add(1);
            next.prev_hash.prev_hash = hash.into();
            next.announcement += 1;
        });
    }
}

#[async_trait]
impl TemplateSource for Templates {
    fn subscribe(&self) -> watch::Receiver<Arc<CurrentTemplate>> {
        self.current.subscribe()
    }

    async fn submit(&self, solution: SubmitSolutionOwned) -> Result<(), SubmitError> {
        let id = solution.template_id;
        self.solutions.lock().unwrap().push(solution);
        Err(SubmitError::Stale(id))
    }
}

/// A running front end.
pub(crate) struct Pool {
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    pub(crate) stats: Arc<Stats>,
    /// The ledger's end of the queue.
    pub(crate) shares: mpsc::Receiver<Submission>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), sv2::Error>>,
}

/// Settings under which a share takes some tens of hashes.
pub(crate) fn config() -> Config {
    Config { shares_per_minute: 60.0, min_hashrate: 32.0, ..Config::default() }
}

impl Pool {
    pub(crate) async fn start(config: Config, templates: Arc<dyn TemplateSource>) -> Self {
        let authority = Authority::from_secret(&[7; 32]).unwrap();
        let stats = Arc::new(Stats::default());
        let (shares, ledger) = mpsc::channel(QUEUE);
        let front = Front {
            authority: authority.clone(),
            templates,
            shares,
            payout: ScriptBuf::from(vec![0x51]),
            coinbase_tag: "hashpit".to_owned(),
            config,
            stats: Arc::clone(&stats),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(sv2::serve(front, listener, shutdown.clone()));
        Self { address, authority, stats, shares: ledger, shutdown, task }
    }

    /// The next share that reaches the ledger.
    pub(crate) async fn submission(&mut self) -> Submission {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), self.shares.recv());
        next.await.expect("a share should have come").expect("the front end runs")
    }

    /// Records the next share.
    pub(crate) async fn record(&mut self) -> Submission {
        let submission = self.submission().await;
        judge(&submission, Outcome::Recorded);
        submission
    }
}

/// Says what became of a share. It never waits: that there is room is part of
/// the contract.
pub(crate) fn judge(submission: &Submission, outcome: Outcome) {
    submission.reply.try_send(Verdict { ticket: submission.ticket, outcome }).unwrap();
}

/// A target that one hash in sixteen misses.
pub(crate) fn easiest() -> Target {
    Target::from_le_bytes([0xff; 32])
}
