//! A tap on the line between a Stratum V1 miner and its server. It passes
//! everything on, and keeps the books that the miner could keep: what each
//! share is worth that was answered `true`, by the difficulty that was set.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use hashpit_nips::Work;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::PAUSE;

/// A tap for one miner.
pub struct Tap {
    /// Where the miner connects.
    pub address: SocketAddr,
    books: Arc<Mutex<Books>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Books {
    /// What a share of the next job is worth.
    next: Work,
    jobs: HashMap<String, Work>,
    /// Submissions without an answer, by id.
    waiting: HashMap<u64, Work>,
    accepted: BTreeMap<Work, u64>,
}

impl Tap {
    /// Waits for one miner and then connects it with `server`.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let books = Arc::<Mutex<Books>>::default();
        let task = tokio::spawn(run(listener, server, books.clone()));
        Ok(Self { address, books, task })
    }

    /// The shares answered `true`, by what each is worth.
    pub fn accepted(&self) -> BTreeMap<Work, u64> {
        lock(&self.books).accepted.clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(listener: TcpListener, server: SocketAddr, books: Arc<Mutex<Books>>) {
    let Ok((miner, _)) = listener.accept().await else { return };
    let server = loop {
        match TcpStream::connect(server).await {
            Ok(server) => break server,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    let (from_miner, to_miner) = miner.into_split();
    let (from_server, to_server) = server.into_split();
    // Either side that hangs up ends both.
    tokio::select! {
        () = pass_on(from_miner, to_server, |message| lock(&books).sent(message)) => {}
        () = pass_on(from_server, to_miner, |message| lock(&books).received(message)) => {}
    }
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies lines; each is noted before it is passed on.
async fn pass_on(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    note: impl Fn(&Value),
) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(message) = serde_json::from_str(&line) {
            note(&message);
        }
        if to.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Books {
    fn sent(&mut self, message: &Value) {
        let job = message["params"][1].as_str().and_then(|job| self.jobs.get(job));
        if let ("mining.submit", Some(id), Some(work)) =
            (message["method"].as_str().unwrap_or_default(), message["id"].as_u64(), job)
        {
            self.waiting.insert(id, *work);
        }
    }

    fn received(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("mining.set_difficulty") => {
                self.next = params[0].as_f64().map(work_of_difficulty).unwrap_or_default();
            }
            Some("mining.notify") => {
                let job = params[0].as_str().unwrap_or_default().to_owned();
                self.jobs.insert(job, self.next);
            }
            Some(_) => {}
            None => {
                let answered = message["id"].as_u64().and_then(|id| self.waiting.remove(&id));
                if let (Some(work), Some(true)) = (answered, message["result"].as_bool()) {
                    *self.accepted.entry(work).or_default() += 1;
                }
            }
        }
    }
}

/// Expected hashes of a difficulty: 2^256 by its target, which is
/// 0xffff × 2^208 by the difficulty.
///
/// A target that a pool made of a hash rate is 2^256 by a whole number, less a
/// fraction too small for any hash to fall into; so the nearest whole number is
/// exact, although a difficulty is a float.
fn work_of_difficulty(difficulty: f64) -> Work {
    Work::new((difficulty * 2f64.powi(48) / f64::from(0xffff_u32)).round() as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difficulty_one_is_worth_two_to_the_32_and_a_little() {
        assert_eq!(work_of_difficulty(1.0), Work::new(4_295_032_833));
    }
}
