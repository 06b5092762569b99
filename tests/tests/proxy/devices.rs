//! What devices say first; each then has a share accepted. Where a firmware's
//! source is public, its words are from there, but for the difficulty, which is
//! a CPU's. Where it is closed, they follow what it is known to support.

use hashpit_tests::sv1_miner::{Handshake, Sv1Miner};

use crate::{pool, proxy, within_patience};

/// Bitaxe: ESP-Miner, components/stratum/stratum_api.c. It sends everything at
/// once, with `jsonrpc` and a mask of all bits.
const BITAXE: Handshake = Handshake {
    lines: &[
        r#"{"id": 1, "method": "mining.configure", "params": [["version-rolling"], {"version-rolling.mask": "ffffffff"}]}"#,
        r#"{"jsonrpc": "2.0", "id": 2, "method": "mining.subscribe", "params": ["bitaxe/BM1366/v2.4.5"]}"#,
        r#"{"jsonrpc": "2.0", "id": 3, "method": "mining.authorize", "params": ["npub1.bitaxe", "x"]}"#,
        r#"{"jsonrpc": "2.0", "id": 4, "method": "mining.suggest_difficulty", "params": [0.00001]}"#,
        r#"{"jsonrpc": "2.0", "id": 5, "method": "mining.extranonce.subscribe", "params": []}"#,
    ],
    pipelined: true,
    rolls_version: true,
    user: "npub1.bitaxe",
};

/// Antminer before version rolling: Bitmain's bmminer, util.c, auth_stratum. Ids
/// count from zero, and `mining.multi_version` comes last.
const ANTMINER_S9: Handshake = Handshake {
    lines: &[
        r#"{"id": 0, "method": "mining.subscribe", "params": ["bmminer/2.0.0"]}"#,
        r#"{"id": 1, "method": "mining.authorize", "params": ["account.s9", "123"]}"#,
        r#"{"id": 2, "method": "mining.suggest_difficulty", "params": [0.00001]}"#,
        r#"{"id": 3, "method": "mining.multi_version", "params": [1]}"#,
    ],
    pipelined: false,
    rolls_version: false,
    user: "account.s9",
};

/// Antminer with version rolling: its firmware is closed; the order is that of
/// BIP 310, the mask a narrow one.
const ANTMINER_S19: Handshake = Handshake {
    lines: &[
        r#"{"id": 1, "method": "mining.configure", "params": [["version-rolling"], {"version-rolling.min-bit-count": 2, "version-rolling.mask": "00c00000"}]}"#,
        r#"{"id": 2, "method": "mining.subscribe", "params": ["Antminer S19 Pro/Thu Jun 24 2021"]}"#,
        r#"{"id": 3, "method": "mining.authorize", "params": ["account.s19", "x"]}"#,
    ],
    pipelined: false,
    rolls_version: true,
    user: "account.s19",
};

/// Whatsminer: its firmware is closed; the order and the four extensions are
/// those of BIP 310, the user agent is the one that pools know it by, and a
/// suggested difficulty was seen to come first.
const WHATSMINER: Handshake = Handshake {
    lines: &[
        r#"{"id":0,"method":"mining.suggest_difficulty","params":[0.00001]}"#,
        r#"{"id":1,"method":"mining.configure","params":[["minimum-difficulty","version-rolling","subscribe-extranonce","info"],{"minimum-difficulty.value":0.000001,"version-rolling.mask":"1fffe000","version-rolling.min-bit-count":2,"info.sw-version":"btminer"}]}"#,
        r#"{"id":2,"method":"mining.subscribe","params":["whatsminer/v1.0"]}"#,
        r#"{"id":3,"method":"mining.authorize","params":["whatsminer","x"]}"#,
    ],
    pipelined: false,
    rolls_version: true,
    user: "whatsminer",
};

/// cgminer 4 and its forks: util.c, initiate_stratum and auth_stratum. A session
/// is resumed by a second parameter; here it asks for one that is long gone.
const CGMINER: Handshake = Handshake {
    lines: &[
        r#"{"id": 0, "method": "mining.subscribe", "params": ["cgminer/4.10.0", "deadbeef"]}"#,
        r#"{"id": 1, "method": "mining.authorize", "params": ["worker", ""]}"#,
    ],
    pipelined: false,
    rolls_version: false,
    user: "worker",
};

/// NiceHash: its user agent, host and port with null for a session, and its
/// extension for a changing extranonce, which it asks for before all else is
/// settled.
const NICEHASH: Handshake = Handshake {
    lines: &[
        r#"{"id":"1","method":"mining.subscribe","params":["NiceHash/1.0.0",null,"pool.example",3333]}"#,
        r#"{"id":"2","method":"mining.extranonce.subscribe","params":[]}"#,
        r#"{"id":"3","method":"mining.authorize","params":["3Foo.nh","x"]}"#,
    ],
    pipelined: false,
    rolls_version: false,
    user: "3Foo.nh",
};

/// What some firmware does: authorize, then subscribe, then configure.
const BACKWARDS: Handshake = Handshake {
    lines: &[
        r#"{"id":7,"method":"mining.authorize","params":["x.backwards","x"]}"#,
        r#"{"id":8,"method":"mining.subscribe","params":[]}"#,
        r#"{"id":9,"method":"mining.suggest_target","params":["00ffff0000000000000000000000000000000000000000000000000000000000"]}"#,
        r#"{"id":10,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"1fffe000"}]}"#,
    ],
    pipelined: false,
    rolls_version: true,
    user: "x.backwards",
};

#[tokio::test(flavor = "multi_thread")]
async fn every_device_has_its_shares_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    let devices = [BITAXE, ANTMINER_S9, ANTMINER_S19, WHATSMINER, CGMINER, NICEHASH, BACKWARDS];
    for device in devices {
        let mined = async {
            let mut miner = Sv1Miner::shake_hands(proxy.sv1, device).await?;
            assert_eq!(miner.extranonce2_size(), 8);
            miner.mine(2).await
        };
        let tally = within_patience(mined).await.unwrap_or_else(|e| panic!("{device:?}: {e}"));
        assert_eq!((tally.accepted, tally.rejected.len()), (2, 0), "{device:?}: {tally:?}");
    }
    let status = proxy.monitor.status();
    let names: Vec<_> = status.workers.iter().map(|worker| worker.worker.as_str()).collect();
    assert_eq!(names, ["backwards", "bitaxe", "nh", "s19", "s9", "whatsminer", "worker"]);
    assert_eq!(pool.monitor.status().totals.shares, 2 * devices.len() as u64);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}
