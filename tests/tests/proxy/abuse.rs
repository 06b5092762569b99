//! Devices that send what no device should.

use std::net::SocketAddr;

use hashpit_client::proxy::Settings;
use hashpit_tests::proxy_house::{ProxyHouse, address};
use hashpit_tests::sv1_miner::Sv1Miner;
use hashpit_tests::sv2_peer::{Channel, Sv2Peer};
use serde_json::Value;
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::{miner, pool, proxy, within_patience};

/// Sends bytes, and returns what was answered by the time that the proxy hung
/// up.
async fn until_hung_up(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(server).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let mut answer = Vec::new();
    let (sent, heard) = tokio::join!(write.write_all(bytes), read.read_to_end(&mut answer));
    // It may hang up while we are at it, and then resets the connection.
    let _ = (sent, heard);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_is_dropped_and_costs_nobody_else_anything() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    let mut honest = within_patience(Sv1Miner::connect(proxy.sv1, "honest")).await.unwrap();

    let flood = "{\"id\":1,\"method\":\"mining.ping\",\"params\":[]}\n".repeat(20_000);
    let nonsense = "nonsense\n".repeat(100);
    let wrong = "{\"id\":1,\"method\":\"mining.submit\",\"params\":[1]}\n".repeat(100);
    let garbage: Vec<u8> =
        (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [nonsense.as_bytes(), wrong.as_bytes(), &vec![b'x'; 100_000], flood.as_bytes()] {
        within_patience(until_hung_up(proxy.sv1, bytes)).await;
    }
    for port in [proxy.sv1, proxy.sv2] {
        within_patience(until_hung_up(port, &garbage)).await;
    }
    let tally = within_patience(honest.mine(3)).await.unwrap();
    assert_eq!((tally.accepted, tally.rejected.len()), (3, 0));
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

/// One request after another, each with its answer.
async fn converse(server: SocketAddr, requests: &[&str]) -> Vec<Value> {
    let stream = TcpStream::connect(server).await.unwrap();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut answers = Vec::new();
    for request in requests {
        write.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        loop {
            let line = within_patience(lines.next_line()).await.unwrap().expect("it hung up");
            let message: Value = serde_json::from_str(&line).unwrap();
            if message.get("method").is_none() {
                answers.push(message);
                break;
            }
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_answered_with_an_error_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    let submit = r#"{"id":5,"method":"mining.submit","params":["w","1","0000000000000000","00000001","00000000"]}"#;
    let answers = converse(
        proxy.sv1,
        &[
            r#"{"id":1,"method":"mining.get_transactions","params":["1"]}"#,
            submit,
            r#"{"id":2,"method":"mining.authorize","params":["w","x"]}"#,
            submit,
            r#"{"id":3,"method":"mining.subscribe","params":[]}"#,
            r#"{"id":4,"method":"mining.submit","params":["w","777","0000000000000000","00000001","00000000"]}"#,
            r#"{"id":null,"method":"mining.suggest_difficulty","params":["0.5"]}"#,
        ],
    )
    .await;
    let codes: Vec<_> = answers.iter().map(|answer| answer["error"][0].as_u64()).collect();
    assert_eq!(codes, [Some(20), Some(24), None, Some(25), None, Some(21), None], "{answers:?}");
    let ids: Vec<_> = answers.iter().map(|answer| answer["id"].as_u64()).collect();
    assert_eq!(ids, [Some(1), Some(5), Some(2), Some(5), Some(3), Some(4), None]);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

/// It asks and asks, and reads nothing of what it is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_does_not_read_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let settings = Settings {
        write_timeout_secs: 1,
        max_lines_per_second: u32::MAX,
        ..ProxyHouse::settings()
    };
    let proxy = ProxyHouse::start(vec![address(&pool).unwrap()], miner(), settings).await.unwrap();
    let mut stream = TcpStream::connect(proxy.sv1).await.unwrap();
    let requests = "{\"id\":1,\"method\":\"mining.ping\",\"params\":[]}\n".repeat(1_000);
    let dropped = async { while stream.write_all(requests.as_bytes()).await.is_ok() {} };
    within_patience(dropped).await;
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

/// Sends so many shares that meet no target, and reads what they are answered.
async fn send_wrong(peer: &mut Sv2Peer, channel: &mut Channel, shares: usize) {
    for _ in 0..shares {
        let newest = channel.newest_job();
        let share = channel.mine_where(newest, |hash, target| !target.is_met_by(hash)).unwrap();
        peer.send_mining(share.message()).await.unwrap();
        assert_eq!(verdict(peer, channel).await, Err("difficulty-too-low".to_owned()));
    }
}

/// The pool's word on the one share that is on its way.
async fn verdict(peer: &mut Sv2Peer, channel: &mut Channel) -> Result<(), String> {
    loop {
        match within_patience(peer.next_mining()).await.unwrap() {
            MiningOwned::SubmitSharesSuccess(_) => return Ok(()),
            MiningOwned::SubmitSharesError(m) => return Err(m.error_code.as_utf8_or_hex()),
            other => channel.follow(&other),
        }
    }
}

/// It would cost all others their connection to the pool, which endures a
/// thousand wrong shares in a row.
#[tokio::test(flavor = "multi_thread")]
async fn an_sv2_device_that_sends_nothing_but_wrong_shares_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    let mut peer = Sv2Peer::ready(proxy.sv2).await.unwrap();
    let mut channel = peer.open_extended("wrong", 1.0).await.unwrap().unwrap();
    send_wrong(&mut peer, &mut channel, 99).await;
    let share = channel.mine().unwrap();
    peer.send_mining(share.message()).await.unwrap();
    assert_eq!(verdict(&mut peer, &mut channel).await, Ok(()));
    send_wrong(&mut peer, &mut channel, 100).await;
    // The connection has ended; it is not that nothing came for long.
    let ended = loop {
        match peer.next().await {
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(ended.starts_with("read: "), "{ended}");
    let worker = &proxy.monitor.status().workers[0];
    assert_eq!((worker.accepted, worker.rejected["difficulty-too-low"]), (1, 199));
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_all_seats() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let settings = Settings { max_connections_per_ip: 1, ..ProxyHouse::settings() };
    let proxy = ProxyHouse::start(vec![address(&pool).unwrap()], miner(), settings).await.unwrap();
    let mut first = within_patience(Sv1Miner::connect(proxy.sv1, "first")).await.unwrap();
    assert!(within_patience(Sv1Miner::connect(proxy.sv1, "second")).await.is_err());
    // The other port has seats of its own.
    within_patience(Sv2Peer::ready(proxy.sv2)).await.unwrap();
    assert_eq!(within_patience(first.mine(1)).await.unwrap().accepted, 1);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}
