//! What becomes of shares.

use std::sync::Arc;

use bitcoin::Target;
use bitcoin::hashes::Hash;
use hashpit_nips::{MinerIdentity, Work};
use hashpit_pool::share::Outcome;
use hashpit_pool::template::embedded::system_clock;
use hashpit_pool::template::{EmbeddedChain, EmbeddedConfig, TemplateSource};
use stratum_apps::stratum_core::mining_sv2::{CloseChannelOwned, UpdateChannelOwned};
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;

use crate::NPUB;
use crate::pool::{Pool, Templates, config, easiest, judge};
use crate::sv2_peer::{Channel, Sv2Peer};

async fn next_answer(peer: &mut Sv2Peer) -> MiningOwned {
    peer.next_mining().await.unwrap()
}

async fn success(peer: &mut Sv2Peer) -> (u32, u32) {
    match next_answer(peer).await {
        MiningOwned::SubmitSharesSuccess(m) => {
            (m.last_sequence_number, m.new_submits_accepted_count)
        }
        other => panic!("expected a success, not {other}"),
    }
}

async fn error(peer: &mut Sv2Peer) -> (u32, String) {
    match next_answer(peer).await {
        MiningOwned::SubmitSharesError(m) => (m.sequence_number, m.error_code.as_utf8_or_hex()),
        other => panic!("expected an error, not {other}"),
    }
}

/// Makes the pool answer something that has nothing to do with shares, so that
/// all it had to say before has been said.
async fn nothing_yet(peer: &mut Sv2Peer) {
    let update = UpdateChannelOwned {
        channel_id: 999,
        nominal_hash_rate: 1.0,
        maximum_target: [0xff; 32].into(),
    };
    peer.send_mining(MiningOwned::UpdateChannel(update)).await.unwrap();
    match next_answer(peer).await {
        MiningOwned::UpdateChannelError(m) => {
            assert_eq!(m.error_code.as_utf8_or_hex(), "invalid-channel-id")
        }
        other => panic!("the pool answered too early: {other}"),
    }
}

async fn miner(pool: &Pool) -> (Sv2Peer, Channel) {
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    let channel = peer.open_standard(NPUB, 32.0).await.unwrap().unwrap();
    (peer, channel)
}

async fn submit(peer: &mut Sv2Peer, channel: &mut Channel) -> bitcoin::BlockHash {
    let share = channel.mine().unwrap();
    peer.send_mining(share.message()).await.unwrap();
    share.hash
}

#[tokio::test]
async fn standard_and_extended_channels_mine_shares_that_are_credited_and_acknowledged() {
    let mut pool = Pool::start(config(), Templates::new()).await;
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    let standard = peer.open_standard(&format!("{NPUB}.left"), 32.0).await.unwrap().unwrap();
    let extended = peer.open_extended(&format!("{NPUB}.right"), 64.0).await.unwrap().unwrap();
    for mut channel in [standard, extended] {
        let hash = submit(&mut peer, &mut channel).await;
        let submission = pool.record().await;
        assert_eq!(submission.share.miner, NPUB.parse::<MinerIdentity>().unwrap().miner);
        assert_eq!(submission.share.header_hash, hash.to_byte_array());
        assert_eq!(submission.share.work, Work::of_target(channel.target).unwrap());
        assert_eq!(submission.ticket.work, submission.share.work);
        assert_eq!(success(&mut peer).await, (1, 1));
    }
    let stats = pool.stats.snapshot();
    assert_eq!((stats.accepted, stats.channels, stats.connections), (2, 2, 1));
}

#[tokio::test]
async fn a_share_is_acknowledged_only_after_the_verdict() {
    let mut pool = Pool::start(config(), Templates::new()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    submit(&mut peer, &mut channel).await;
    let held = pool.submission().await;
    nothing_yet(&mut peer).await;
    judge(&held, Outcome::Recorded);
    assert_eq!(success(&mut peer).await, (1, 1));
}

#[tokio::test]
async fn verdicts_are_answered_in_order_and_together() {
    let mut pool = Pool::start(config(), Templates::new()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        submit(&mut peer, &mut channel).await;
        held.push(pool.submission().await);
    }
    judge(&held[3], Outcome::Recorded);
    judge(&held[1], Outcome::Duplicate);
    judge(&held[2], Outcome::Recorded);
    nothing_yet(&mut peer).await;
    judge(&held[0], Outcome::Recorded);
    assert_eq!(error(&mut peer).await, (2, "duplicate-share".to_owned()));
    assert_eq!(success(&mut peer).await, (4, 3));
    assert_eq!(pool.stats.snapshot().rejected["duplicate-share"], 1);
}

#[tokio::test]
async fn wrong_shares_are_refused_by_name() {
    let pool = Pool::start(config(), Templates::new()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    let share = channel.mine().unwrap();
    let easy = channel.mine_where(share.job_id, |hash, target| !target.is_met_by(hash)).unwrap();
    let late = share.ntime + 2 * 60 * 60 + 1;
    let cases = [
        (crate::sv2_peer::Share { job_id: 77, ..share.clone() }, "invalid-job-id"),
        (crate::sv2_peer::Share { channel_id: 77, ..share.clone() }, "invalid-channel-id"),
        (crate::sv2_peer::Share { ntime: share.ntime - 1, ..share.clone() }, "invalid-share"),
        (crate::sv2_peer::Share { ntime: late, ..share.clone() }, "invalid-share"),
        (
            crate::sv2_peer::Share { version: 1, ..share.clone() },
            "invalid-non-rollable-version-bit",
        ),
        (
            crate::sv2_peer::Share { extranonce: Some(vec![0; 8]), ..share.clone() },
            "invalid-channel-id",
        ),
        (easy, "difficulty-too-low"),
    ];
    for (wrong, code) in cases {
        peer.send_mining(wrong.message()).await.unwrap();
        assert_eq!(error(&mut peer).await, (wrong.sequence_number, code.to_owned()));
    }
}

#[tokio::test]
async fn a_share_counts_once() {
    let mut pool = Pool::start(config(), Templates::new()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    let share = channel.mine().unwrap();
    peer.send_mining(share.message()).await.unwrap();
    peer.send_mining(share.message()).await.unwrap();
    assert_eq!(error(&mut peer).await, (1, "duplicate-share".to_owned()));
    pool.record().await;
    assert_eq!(success(&mut peer).await, (1, 1));
    assert!(pool.shares.try_recv().is_err());
}

#[tokio::test]
async fn jobs_outlive_a_refresh_but_not_a_tip() {
    let templates = Templates::new();
    let mut pool = Pool::start(config(), templates.clone()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    let first = channel.newest_job();

    templates.next(|_| {});
    channel.follow(&peer.next_mining().await.unwrap());
    assert_ne!(channel.newest_job(), first);
    let older = channel.mine_where(first, |hash, target| target.is_met_by(hash)).unwrap();
    peer.send_mining(older.message()).await.unwrap();
    pool.record().await;
    success(&mut peer).await;

    let stale = channel.mine().unwrap();
    templates.new_tip();
    channel.follow(&peer.next_mining().await.unwrap());
    channel.follow(&peer.next_mining().await.unwrap());
    peer.send_mining(stale.message()).await.unwrap();
    assert_eq!(error(&mut peer).await.1, "stale-share");
    submit(&mut peer, &mut channel).await;
    pool.record().await;
    success(&mut peer).await;
}

#[tokio::test]
async fn a_tip_announced_afresh_allows_later_times() {
    let templates = Templates::new();
    let mut pool = Pool::start(config(), templates.clone()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    templates.next(|next| {
        next.prev_hash.header_timestamp += 3 * 60 * 60;
        next.announcement += 1;
    });
    channel.follow(&peer.next_mining().await.unwrap());
    channel.follow(&peer.next_mining().await.unwrap());
    submit(&mut peer, &mut channel).await;
    pool.record().await;
    success(&mut peer).await;
}

#[tokio::test]
async fn a_new_target_holds_from_the_next_job_and_old_jobs_keep_theirs() {
    let mut pool = Pool::start(config(), Templates::new()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    let (old_job, old_target) = (channel.newest_job(), channel.target);
    let maximum_target = easiest().to_le_bytes().into();
    let update =
        UpdateChannelOwned { channel_id: channel.id, nominal_hash_rate: 2_000.0, maximum_target };
    peer.send_mining(MiningOwned::UpdateChannel(update)).await.unwrap();
    channel.follow(&peer.next_mining().await.unwrap());
    channel.follow(&peer.next_mining().await.unwrap());
    assert!(channel.target < old_target);

    let new_target = channel.target;
    let old = channel
        .mine_where(old_job, |hash, _| old_target.is_met_by(hash) && !new_target.is_met_by(hash))
        .unwrap();
    peer.send_mining(old.message()).await.unwrap();
    assert_eq!(pool.record().await.share.work, Work::of_target(old_target).unwrap());
    success(&mut peer).await;
    submit(&mut peer, &mut channel).await;
    assert_eq!(pool.record().await.share.work, Work::of_target(new_target).unwrap());
    success(&mut peer).await;
}

#[tokio::test]
async fn a_slow_ledger_slows_its_miners_and_loses_nothing() {
    const SHARES: u32 = 20;
    const MAX_IN_FLIGHT: usize = 6;
    let settings = hashpit_pool::sv2::Config { max_in_flight: MAX_IN_FLIGHT, ..config() };
    let mut pool = Pool::start(settings, Templates::new()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    for _ in 0..SHARES {
        submit(&mut peer, &mut channel).await;
    }
    let mut held = std::collections::VecDeque::new();
    let mut acknowledged = 0;
    while acknowledged < SHARES {
        // Take what the window allows, then let one share go.
        while held.len() < MAX_IN_FLIGHT.min((SHARES - acknowledged) as usize) {
            held.push_back(pool.submission().await);
        }
        judge(&held.pop_front().unwrap(), Outcome::Recorded);
        assert_eq!(success(&mut peer).await, (acknowledged + 1, 1));
        acknowledged += 1;
        assert!(held.len() + pool.shares.len() <= MAX_IN_FLIGHT);
    }
    assert_eq!(pool.stats.snapshot().accepted, u64::from(SHARES));
}

#[tokio::test]
async fn a_closed_channel_takes_no_shares() {
    let pool = Pool::start(config(), Templates::new()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    let reason_code = "bye".to_owned().try_into().unwrap();
    let close = CloseChannelOwned { channel_id: channel.id, reason_code };
    peer.send_mining(MiningOwned::CloseChannel(close)).await.unwrap();
    submit(&mut peer, &mut channel).await;
    assert_eq!(error(&mut peer).await.1, "invalid-channel-id");
    assert_eq!(pool.stats.snapshot().channels, 0);
}

#[tokio::test]
async fn a_block_that_the_chain_refuses_is_a_share_all_the_same() {
    let templates = Templates::at("207fffff");
    let mut pool = Pool::start(config(), templates.clone()).await;
    let (mut peer, mut channel) = miner(&pool).await;
    let network = Target::from_le_bytes(
        "207fffff".parse::<hashpit_pool::template::Bits>().unwrap().target().to_le_bytes(),
    );
    let block = channel
        .mine_where(channel.newest_job(), |hash, target| {
            network.is_met_by(hash) && !target.is_met_by(hash)
        })
        .unwrap();
    peer.send_mining(block.message()).await.unwrap();
    // The hash misses the share's own target: what it had to meet was the
    // network's, and that is what it is worth.
    assert_eq!(pool.record().await.share.work, Work::of_target(network).unwrap());
    success(&mut peer).await;
    assert_eq!(templates.solutions.lock().unwrap().len(), 1);
    assert_eq!(pool.stats.snapshot().blocks, 0);
}

#[tokio::test]
async fn a_block_found_on_either_kind_of_channel_extends_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blocks.dat");
    let bits = EmbeddedConfig { bits: "200fffff".parse().unwrap(), ..EmbeddedConfig::default() };
    let (chain, task) = EmbeddedChain::open(bits, &path, system_clock()).unwrap();
    let running = tokio::spawn(task.run(tokio_util::sync::CancellationToken::new()));
    let mut pool = Pool::start(config(), Arc::new(chain.clone())).await;
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    let mut standard = peer.open_standard(NPUB, 32.0).await.unwrap().unwrap();
    let mut tips = chain.subscribe();
    for extended in [false, true] {
        let mut channel = if extended {
            peer.open_extended(NPUB, 32.0).await.unwrap().unwrap()
        } else {
            standard.clone()
        };
        let network: hashpit_pool::template::Bits = "200fffff".parse().unwrap();
        let block = channel
            .mine_where(channel.newest_job(), |hash, _| network.target().is_met_by(hash))
            .unwrap();
        tips.borrow_and_update();
        peer.send_mining(block.message()).await.unwrap();
        tips.changed().await.unwrap();
        pool.record().await;
        assert_eq!(chain.tip(), block.hash);
        // Its acknowledgement and the new tip come in either order.
        let mut acknowledged = false;
        let mut informed = false;
        while !acknowledged || !informed {
            let message = peer.next_mining().await.unwrap();
            standard.follow(&message);
            acknowledged |= matches!(message, MiningOwned::SubmitSharesSuccess(_));
            informed |=
                matches!(&message, MiningOwned::SetNewPrevHash(m) if m.channel_id == channel.id);
        }
    }
    assert_eq!(chain.height(), 2);
    let stored = chain.block(2).await.unwrap().unwrap();
    assert_eq!(stored.txdata[0].output[0].script_pubkey.as_bytes(), [0x51]);
    assert_eq!(pool.stats.snapshot().blocks, 2);
    running.abort();
}
