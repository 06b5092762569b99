//! The threads that hash. They own nothing but their place in the nonce space:
//! a job is put up for all of them, and what they find comes back by a channel.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitcoin::block::Header;
use bitcoin::hashes::Hash;
use bitcoin::{Target, TxMerkleNode};
use tokio::sync::mpsc;

use super::header::Search;

/// Nonces between two looks at whether the job still stands: some tenths of a
/// millisecond.
const BATCH: u32 = 4_096;
/// Finds that wait for the session. When it is full the threads wait: the
/// session will be told no more than the pool can be.
const FOUND_QUEUE: usize = 64;
/// The longest that a throttled thread sleeps before it looks up.
const NAP: Duration = Duration::from_millis(20);
/// How far past a job's first time its header may be dated; the pool refuses
/// more, and so does the network.
const MAX_TIME_ROLL: u32 = 2 * 60 * 60;

/// What to hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) job_id: u32,
    /// With the earliest time that it may bear.
    pub(super) header: Header,
    pub(super) target: Target,
    /// When that time was given; it goes on from there.
    pub(super) since: Instant,
}

/// A header that meets its job's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) job_id: u32,
    pub(super) header: Header,
}

/// The threads. Dropping it stops them.
#[derive(Debug)]
pub(super) struct Hashers {
    board: Arc<Board>,
}

/// Where the job is put up.
#[derive(Debug, Default)]
struct Board {
    post: Mutex<Post>,
    changed: Condvar,
    /// Counts posts, so that a thread sees without the lock that its job is
    /// gone.
    posts: AtomicU64,
    hashes: AtomicU64,
}

#[derive(Debug, Default)]
enum Post {
    #[default]
    Idle,
    Job(Job),
    Stop,
}

impl Board {
    fn put(&self, post: Post) {
        *self.lock() = post;
        self.posts.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a job other than post number `seen`; `None` when it is time to
    /// stop.
    fn next(&self, seen: u64) -> Option<(u64, Job)> {
        let mut post = self.lock();
        loop {
            let number = self.posts.load(Ordering::Acquire);
            match &*post {
                Post::Stop => return None,
                Post::Job(job) if number != seen => return Some((number, job.clone())),
                Post::Job(_) | Post::Idle => {}
            }
            post = self.changed.wait(post).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stands(&self, number: u64) -> bool {
        self.posts.load(Ordering::Relaxed) == number
    }
}

impl Hashers {
    /// Starts `threads` threads, idle.
    pub(super) fn start(
        threads: NonZeroUsize,
        max_hashrate: Option<f64>,
    ) -> (Self, mpsc::Receiver<Found>) {
        let board = Arc::new(Board::default());
        let (found, receiver) = mpsc::channel(FOUND_QUEUE);
        let stripe = u32::MAX / u32::try_from(threads.get()).unwrap_or(u32::MAX);
        for index in 0..threads.get() {
            let hasher = Hasher {
                board: Arc::clone(&board),
                found: found.clone(),
                first_nonce: stripe.wrapping_mul(index as u32),
                stripe: stripe.max(BATCH),
                max_hashrate: max_hashrate.map(|all| all / threads.get() as f64),
            };
            std::thread::Builder::new()
                .name(format!("hasher-{index}"))
                .spawn(move || hasher.run())
                .map(drop)
                .unwrap_or_else(|error| tracing::error!(%error, "cannot start a hashing thread"));
        }
        (Self { board }, receiver)
    }

    /// Puts up a job; threads leave the one before at once.
    pub(super) fn work_on(&self, job: Job) {
        self.board.put(Post::Job(job));
    }

    /// Takes the job down.
    pub(super) fn idle(&self) {
        self.board.put(Post::Idle);
    }

    /// Hashes done since the start.
    pub(super) fn hashes(&self) -> u64 {
        self.board.hashes.load(Ordering::Relaxed)
    }

    /// Hashes per second over `span` of a job that nothing can solve.
    pub(super) async fn measure(&mut self, span: Duration) -> f64 {
        let mut header = bitcoin::constants::genesis_block(bitcoin::Network::Signet).header;
        header.merkle_root = TxMerkleNode::all_zeros();
        let since = Instant::now();
        let before = self.hashes();
        self.work_on(Job { job_id: 0, header, target: Target::ZERO, since });
        tokio::time::sleep(span).await;
        let rate = (self.hashes() - before) as f64 / since.elapsed().as_secs_f64();
        self.idle();
        rate
    }
}

impl Drop for Hashers {
    fn drop(&mut self) {
        self.board.put(Post::Stop);
    }
}

/// One thread.
struct Hasher {
    board: Arc<Board>,
    found: mpsc::Sender<Found>,
    first_nonce: u32,
    stripe: u32,
    max_hashrate: Option<f64>,
}

impl Hasher {
    fn run(self) {
        let mut seen = 0;
        while let Some((number, job)) = self.board.next(seen) {
            seen = number;
            if self.hash(number, &job).is_err() {
                return;
            }
        }
    }

    /// Hashes `job` for as long as it stands. Errors when nobody listens.
    fn hash(&self, number: u64, job: &Job) -> Result<(), mpsc::error::SendError<Found>> {
        let mut search = Search::new(&job.header, job.target);
        let mut pace = Pace::new(self.max_hashrate);
        let (mut offset, mut rolled) = (0, 0);
        while self.board.stands(number) {
            let elapsed = u32::try_from(job.since.elapsed().as_secs()).unwrap_or(u32::MAX);
            // A stripe that is used up before the second is goes on with a
            // later time.
            let ahead = elapsed.max(rolled);
            if ahead > MAX_TIME_ROLL {
                return Ok(());
            }
            rolled = ahead;
            let header = Header { time: job.header.time.saturating_add(ahead), ..job.header };
            search.set_time(header.time);
            let (start, count) =
                (self.first_nonce.wrapping_add(offset), BATCH.min(self.stripe - offset));
            self.scan(&mut search, start, count, |nonce| Found {
                job_id: job.job_id,
                header: Header { nonce, ..header },
            })?;
            offset += count;
            if offset == self.stripe {
                (offset, rolled) = (0, rolled + 1);
            }
            pace.keep(count, || self.board.stands(number));
        }
        Ok(())
    }

    /// Sends all that `count` nonces yield.
    fn scan(
        &self,
        search: &mut Search,
        mut start: u32,
        count: u32,
        found: impl Fn(u32) -> Found,
    ) -> Result<(), mpsc::error::SendError<Found>> {
        let mut left = count;
        while let Some(nonce) = search.scan(start, left) {
            self.found.blocking_send(found(nonce))?;
            left -= nonce.wrapping_sub(start) + 1;
            start = nonce.wrapping_add(1);
        }
        self.board.hashes.fetch_add(count.into(), Ordering::Relaxed);
        Ok(())
    }
}

/// Keeps a thread below a hash rate.
struct Pace {
    max_hashrate: Option<f64>,
    since: Instant,
    hashes: f64,
}

impl Pace {
    fn new(max_hashrate: Option<f64>) -> Self {
        Self { max_hashrate, since: Instant::now(), hashes: 0.0 }
    }

    /// Sleeps until `count` more hashes are within the rate, or the job is gone.
    fn keep(&mut self, count: u32, stands: impl Fn() -> bool) {
        let Some(rate) = self.max_hashrate.filter(|rate| *rate > 0.0) else { return };
        self.hashes += f64::from(count);
        let due = self.hashes / rate;
        loop {
            let ahead = due - self.since.elapsed().as_secs_f64();
            if ahead <= 0.0 || !stands() {
                return;
            }
            std::thread::sleep(NAP.min(Duration::from_secs_f64(ahead)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(job_id: u32, leading_zero_bytes: usize) -> Job {
        let mut target = [0xff; 32];
        target[32 - leading_zero_bytes..].fill(0);
        let header = bitcoin::constants::genesis_block(bitcoin::Network::Signet).header;
        Job { job_id, header, target: Target::from_le_bytes(target), since: Instant::now() }
    }

    #[tokio::test]
    async fn threads_find_different_headers_and_leave_a_job_that_is_gone() {
        let (hashers, mut found) = Hashers::start(NonZeroUsize::new(2).unwrap(), None);
        let first = job(1, 2);
        hashers.work_on(first.clone());
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            let found = found.recv().await.unwrap();
            assert_eq!(found.job_id, 1);
            assert!(first.target.is_met_by(found.header.block_hash()));
            assert!(seen.insert(found.header.block_hash()));
        }
        hashers.work_on(job(2, 2));
        while found.recv().await.unwrap().job_id != 2 {}
        drop(hashers);
        while found.recv().await.is_some() {}
    }

    #[tokio::test]
    async fn a_throttle_holds() {
        let limit = 50_000.0;
        let (mut hashers, _found) = Hashers::start(NonZeroUsize::new(2).unwrap(), Some(limit));
        let rate = hashers.measure(Duration::from_millis(400)).await;
        assert!(rate < limit * 1.5, "{rate} hashes a second");
    }
}
