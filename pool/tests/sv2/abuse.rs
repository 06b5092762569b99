//! What one peer does costs no other anything.

use std::time::Duration;

use hashpit_pool::share::Outcome;
use hashpit_pool::sv2::{self, Config};
use stratum_apps::stratum_core::mining_sv2::UpdateChannelOwned;
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;
use stratum_apps::utils::types::{InboundFrame, OutboundFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::NPUB;
use crate::pool::{Pool, Templates, config, judge};
use crate::sv2_peer::{Channel, Sv2Peer, setup};

/// A miner that was there before, and mines all the while.
struct Honest {
    peer: Sv2Peer,
    channel: Channel,
}

impl Honest {
    async fn join(pool: &Pool) -> Self {
        let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
        let channel = peer.open_standard(NPUB, 32.0).await.unwrap().unwrap();
        Self { peer, channel }
    }

    async fn still_mines(&mut self, pool: &mut Pool) {
        let share = self.channel.mine().unwrap();
        self.peer.send_mining(share.message()).await.unwrap();
        pool.record().await;
        match self.peer.next_mining().await.unwrap() {
            MiningOwned::SubmitSharesSuccess(m) => {
                assert_eq!(m.last_sequence_number, share.sequence_number)
            }
            other => panic!("expected a success, not {other}"),
        }
    }
}

/// A frame with this header's length and this payload.
fn raw(kind: u8, payload: &[u8]) -> OutboundFrame {
    let length = (payload.len() as u32).to_le_bytes();
    let bytes = [&[0, 0, kind], &length[..3], payload].concat();
    OutboundFrame::Raw(InboundFrame::from_bytes(bytes.into()).unwrap())
}

/// Short timeouts, for tests that wait for one.
fn impatient() -> Config {
    Config { handshake_timeout_secs: 1, setup_timeout_secs: 1, write_timeout_secs: 1, ..config() }
}

async fn gone(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest));
    // Closed or reset: either way it is over.
    let _ = read.await.expect("the pool should have closed the connection");
}

#[tokio::test]
async fn junk_and_half_handshakes_harm_nobody() {
    let mut pool = Pool::start(impatient(), Templates::new()).await;
    let mut honest = Honest::join(&pool).await;
    let mut junk = TcpStream::connect(pool.address).await.unwrap();
    junk.write_all(&[0xff; 4_096]).await.unwrap();
    let mut half = TcpStream::connect(pool.address).await.unwrap();
    half.write_all(&[1; 10]).await.unwrap();
    let silent = TcpStream::connect(pool.address).await.unwrap();
    let shy = Sv2Peer::connect(pool.address, None).await.unwrap();
    honest.still_mines(&mut pool).await;
    for stream in [junk, half, silent] {
        gone(stream).await;
    }
    let mut shy = shy;
    shy.closed().await.unwrap();
    honest.still_mines(&mut pool).await;
}

#[tokio::test]
async fn an_oversized_frame_ends_its_connection_before_it_is_read() {
    let mut pool = Pool::start(config(), Templates::new()).await;
    let mut honest = Honest::join(&pool).await;
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    peer.send_frame(raw(0x1a, &vec![0; 17 * 1024])).await.unwrap();
    peer.closed().await.unwrap();
    honest.still_mines(&mut pool).await;
}

#[tokio::test]
async fn nonsense_is_borne_for_a_while() {
    let settings = Config { max_strikes: 3, ..config() };
    let mut pool = Pool::start(settings, Templates::new()).await;
    let mut honest = Honest::join(&pool).await;
    let mut peer = Honest::join(&pool).await;
    peer.peer.send_frame(raw(0xee, b"no such message")).await.unwrap();
    peer.peer.send_frame(raw(0x1a, b"cut off")).await.unwrap();
    peer.still_mines(&mut pool).await;
    peer.peer.send_frame(raw(0x1a, b"cut off")).await.unwrap();
    peer.peer.closed().await.unwrap();
    honest.still_mines(&mut pool).await;
}

#[tokio::test]
async fn a_miner_that_gets_nothing_right_is_dropped() {
    let pool = Pool::start(config(), Templates::new()).await;
    let Honest { mut peer, mut channel } = Honest::join(&pool).await;
    let wrong =
        channel.mine_where(channel.newest_job(), |hash, target| !target.is_met_by(hash)).unwrap();
    for _ in 0..1_000 {
        peer.send_mining(wrong.message()).await.unwrap();
    }
    peer.closed().await.unwrap();
    assert_eq!(pool.stats.snapshot().rejected["difficulty-too-low"], 1_000);
}

#[tokio::test]
async fn a_peer_that_never_reads_is_given_up() {
    let mut pool = Pool::start(impatient(), Templates::new()).await;
    let mut honest = Honest::join(&pool).await;
    // Small buffers fill soon.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.set_send_buffer_size(4_096).unwrap();
    let stream = socket.connect(pool.address).await.unwrap();
    let mut peer = Sv2Peer::over(stream, None).await.unwrap();
    peer.set_up(setup()).await.unwrap();
    let channel = peer.open_extended(NPUB, 32.0).await.unwrap().unwrap();
    // Each of these is answered with a target and a job; none is ever read.
    let question = || {
        MiningOwned::UpdateChannel(UpdateChannelOwned {
            channel_id: channel.id,
            nominal_hash_rate: 32.0,
            maximum_target: [0xff; 32].into(),
        })
    };
    while peer.send_mining(question()).await.is_ok() {}
    honest.still_mines(&mut pool).await;
}

#[tokio::test]
async fn one_address_does_not_get_all_the_seats() {
    let settings = Config { max_connections_per_ip: 2, ..config() };
    let pool = Pool::start(settings, Templates::new()).await;
    let first = Honest::join(&pool).await;
    let mut second = Honest::join(&pool).await;
    assert!(Sv2Peer::connect(pool.address, None).await.is_err());
    assert_eq!(pool.stats.snapshot().connections_refused, 1);
    drop(first);
    // The pool learns of it when it reads the end of the stream.
    while Sv2Peer::ready(pool.address).await.is_err() {
        tokio::task::yield_now().await;
    }
    second.peer.send_frame(raw(0xee, b"")).await.unwrap();
}

#[tokio::test]
async fn stopping_delivers_what_is_in_flight() {
    let mut pool = Pool::start(config(), Templates::new()).await;
    let Honest { mut peer, mut channel } = Honest::join(&pool).await;
    peer.send_mining(channel.mine().unwrap().message()).await.unwrap();
    let held = pool.submission().await;
    pool.shutdown.cancel();
    judge(&held, Outcome::Recorded);
    match peer.next_mining().await.unwrap() {
        MiningOwned::SubmitSharesSuccess(m) => assert_eq!(m.last_sequence_number, 1),
        other => panic!("expected a success, not {other}"),
    }
    peer.closed().await.unwrap();
    assert!(pool.task.await.unwrap().is_ok());
    assert!(TcpStream::connect(pool.address).await.is_err());
}

#[tokio::test]
async fn without_a_ledger_the_front_end_stops() {
    let Pool { shares, task, .. } = Pool::start(config(), Templates::new()).await;
    drop(shares);
    assert!(matches!(task.await.unwrap(), Err(sv2::Error::LedgerStopped)));
}

#[tokio::test]
async fn settings_out_of_range_are_refused_at_the_start() {
    for wrong in [
        Config { shares_per_minute: 0.0, ..config() },
        Config { shares_per_minute: f32::NAN, ..config() },
        Config { min_hashrate: 0.0, ..config() },
        Config { max_in_flight: 0, ..config() },
    ] {
        let pool = Pool::start(wrong, Templates::new()).await;
        assert!(matches!(pool.task.await.unwrap(), Err(sv2::Error::Config { .. })));
    }
}
