//! How connections and channels are opened, and refused.

use hashpit_pool::sv2::Config;
use stratum_apps::stratum_core::binary_sv2::Seq064KOwned;
use stratum_apps::stratum_core::common_messages_sv2::{Protocol, SetupConnectionOwned};
use stratum_apps::stratum_core::extensions_sv2::RequestExtensionsOwned;
use stratum_apps::stratum_core::mining_sv2::SetCustomMiningJobOwned;
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, CommonMessagesOwned, ExtensionsNegotiationOwned, ExtensionsOwned, MiningOwned,
};

use crate::NPUB;
use crate::pool::{Pool, Templates, config};
use crate::sv2_peer::{Sv2Peer, setup};

#[tokio::test]
async fn the_pool_proves_its_key() {
    let pool = Pool::start(config(), Templates::new()).await;
    let key = pool.authority.to_string().parse().unwrap();
    assert!(Sv2Peer::connect(pool.address, Some(key)).await.is_ok());
    let other = hashpit_pool::sv2::Authority::from_secret(&[8; 32]).unwrap();
    let key = other.to_string().parse().unwrap();
    assert!(Sv2Peer::connect(pool.address, Some(key)).await.is_err());
}

#[tokio::test]
async fn what_the_pool_does_not_speak_is_refused_by_name_and_the_connection_closed() {
    let pool = Pool::start(config(), Templates::new()).await;
    let cases = [
        (
            SetupConnectionOwned { protocol: Protocol::TemplateDistributionProtocol, ..setup() },
            "unsupported-protocol",
            0,
        ),
        (
            SetupConnectionOwned { min_version: 3, max_version: 9, ..setup() },
            "protocol-version-mismatch",
            0,
        ),
        (SetupConnectionOwned { flags: 0b110, ..setup() }, "unsupported-feature-flags", 0b010),
    ];
    for (wrong, code, flags) in cases {
        let mut peer = Sv2Peer::connect(pool.address, None).await.unwrap();
        match peer.set_up(wrong).await.unwrap() {
            CommonMessagesOwned::SetupConnectionError(m) => {
                assert_eq!((m.error_code.as_utf8_or_hex().as_str(), m.flags), (code, flags));
            }
            other => panic!("expected a refusal, not {other}"),
        }
        peer.closed().await.unwrap();
    }
}

#[tokio::test]
async fn a_user_must_be_an_npub() {
    let pool = Pool::start(config(), Templates::new()).await;
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    for user in ["", "worker1", "tb1q0000.rig", "npub1xyz", &format!("{NPUB}.{}", "w".repeat(65))] {
        let refused = peer.open_standard(user, 1.0).await.unwrap().unwrap_err();
        assert_eq!(refused, "unknown-user", "{user}");
        let refused = peer.open_extended(user, 1.0).await.unwrap().unwrap_err();
        assert_eq!(refused, "unknown-user", "{user}");
    }
    assert!(peer.open_standard(NPUB, 1.0).await.unwrap().is_ok());
}

#[tokio::test]
async fn hash_rates_and_channels_have_limits() {
    let settings = Config { max_channels_per_connection: 2, ..config() };
    let pool = Pool::start(settings, Templates::new()).await;
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    let refused = peer.open_standard(NPUB, f32::NAN).await.unwrap().unwrap_err();
    assert_eq!(refused, "invalid-nominal-hashrate");
    let refused = peer.open_extended_with(NPUB, 1.0, 13).await.unwrap().unwrap_err();
    assert_eq!(refused, "min-extranonce-size-too-large");
    let idle = peer.open_standard(NPUB, 0.0).await.unwrap().unwrap();
    let slow = peer.open_extended(NPUB, 32.0).await.unwrap().unwrap();
    assert_eq!(idle.target, slow.target, "no target is easier than the least hash rate's");
    let refused = peer.open_standard(NPUB, 1.0).await.unwrap().unwrap_err();
    assert_eq!(refused, "channel-capacity-exhausted");
}

#[tokio::test]
async fn a_miner_of_headers_gets_standard_channels_only() {
    let pool = Pool::start(config(), Templates::new()).await;
    let mut peer = Sv2Peer::connect(pool.address, None).await.unwrap();
    peer.set_up(SetupConnectionOwned { flags: 0b001, ..setup() }).await.unwrap();
    let refused = peer.open_extended(NPUB, 1.0).await.unwrap().unwrap_err();
    assert_eq!(refused, "extended-channels-not-supported-for-standard-jobs");
    let channel = peer.open_standard(NPUB, 1.0).await.unwrap().unwrap();
    assert_eq!(channel.extranonce_size, None);
}

#[tokio::test]
async fn no_two_channels_share_header_space_not_even_across_a_restart() {
    let mut prefixes = std::collections::HashSet::new();
    for _ in 0..2 {
        let pool = Pool::start(config(), Templates::new()).await;
        let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
        for _ in 0..3 {
            let channel = peer.open_extended(NPUB, 1.0).await.unwrap().unwrap();
            assert_eq!(channel.extranonce_size, Some(12));
            assert!(prefixes.insert(channel.extranonce_prefix));
        }
    }
}

#[tokio::test]
async fn worker_labels_are_the_one_extension() {
    let pool = Pool::start(config(), Templates::new()).await;
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    for (asked, granted) in [(vec![2, 9], Some(vec![2])), (vec![9], None)] {
        let request = RequestExtensionsOwned {
            request_id: 5,
            requested_extensions: Seq064KOwned::new(asked).unwrap(),
        };
        let request = ExtensionsNegotiationOwned::RequestExtensions(request);
        peer.send(AnyMessageOwned::Extensions(ExtensionsOwned::ExtensionsNegotiation(request)))
            .await
            .unwrap();
        let answer = match peer.next().await.unwrap() {
            AnyMessageOwned::Extensions(ExtensionsOwned::ExtensionsNegotiation(answer)) => answer,
            other => panic!("expected an answer, not {other}"),
        };
        match (answer, granted) {
            (ExtensionsNegotiationOwned::RequestExtensionsSuccess(m), Some(granted)) => {
                assert_eq!(m.supported_extensions.into_inner(), granted);
            }
            (ExtensionsNegotiationOwned::RequestExtensionsError(m), None) => {
                assert_eq!(m.unsupported_extensions.into_inner(), [9]);
            }
            (other, _) => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test]
async fn miners_do_not_choose_their_own_jobs() {
    let pool = Pool::start(config(), Templates::new()).await;
    let mut peer = Sv2Peer::ready(pool.address).await.unwrap();
    let channel = peer.open_extended(NPUB, 1.0).await.unwrap().unwrap();
    let job = SetCustomMiningJobOwned {
        channel_id: channel.id,
        request_id: 3,
        token: vec![1].try_into().unwrap(),
        version: 0x2000_0000,
        prev_hash: [0; 32].into(),
        min_ntime: 0,
        nbits: 0,
        coinbase_tx_version: 2,
        coinbase_prefix: vec![].try_into().unwrap(),
        coinbase_tx_input_n_sequence: 0,
        coinbase_tx_outputs: vec![].try_into().unwrap(),
        coinbase_tx_locktime: 0,
        merkle_path: Vec::new().try_into().unwrap(),
    };
    peer.send_mining(MiningOwned::SetCustomMiningJob(job)).await.unwrap();
    match peer.next_mining().await.unwrap() {
        MiningOwned::SetCustomMiningJobError(m) => {
            assert_eq!(
                (m.request_id, m.error_code.as_utf8_or_hex().as_str()),
                (3, "jd-not-supported")
            );
        }
        other => panic!("expected a refusal, not {other}"),
    }
}
