//! Seeds over each transport, cut into pieces so that they run beside each other. A failure prints its seed and the command that replays it.
//!
//! `SIM_SEEDS` says how many over TCP and loopback, 1000 by default; iWARP and verbs, which take longer, and the worlds in
//! which rare things meet have shares of it.

use sim::Kind;
use sim::Transport::{self, Iwarp, Loopback, Tcp, Verbs};

/// Seeds that are asked for.
fn asked() -> u64 {
    match std::env::var("SIM_SEEDS") {
        Ok(count) => count.parse().expect("SIM_SEEDS is a number"),
        Err(_) => 1000,
    }
}

/// Runs piece `piece` of `pieces` of a share of the seeds.
fn seeds(kind: Kind, transport: Transport, share: f64, piece: u64, pieces: u64) {
    let count = (asked() as f64 * share) as u64;
    let range = count * piece / pieces..count * (piece + 1) / pieces;
    let failures: Vec<String> = range
        .filter_map(|seed| sim::run(&kind.of(seed, transport), false).err())
        .map(|failure| failure.to_string())
        .collect();
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
}

macro_rules! pieces {
    ($kind:ident; $($name:ident $transport:ident $share:literal $piece:literal $pieces:literal),* $(,)?) => {$(
        #[test]
        fn $name() {
            seeds(Kind::$kind, $transport, $share, $piece, $pieces);
        }
    )*};
}

pieces! {
    Plain;
    tcp_1_of_8 Tcp 1.0 0 8,
    tcp_2_of_8 Tcp 1.0 1 8,
    tcp_3_of_8 Tcp 1.0 2 8,
    tcp_4_of_8 Tcp 1.0 3 8,
    tcp_5_of_8 Tcp 1.0 4 8,
    tcp_6_of_8 Tcp 1.0 5 8,
    tcp_7_of_8 Tcp 1.0 6 8,
    tcp_8_of_8 Tcp 1.0 7 8,
    loopback_1_of_4 Loopback 1.0 0 4,
    loopback_2_of_4 Loopback 1.0 1 4,
    loopback_3_of_4 Loopback 1.0 2 4,
    loopback_4_of_4 Loopback 1.0 3 4,
    iwarp_1_of_4 Iwarp 0.4 0 4,
    iwarp_2_of_4 Iwarp 0.4 1 4,
    iwarp_3_of_4 Iwarp 0.4 2 4,
    iwarp_4_of_4 Iwarp 0.4 3 4,
    verbs_1_of_4 Verbs 0.3 0 4,
    verbs_2_of_4 Verbs 0.3 1 4,
    verbs_3_of_4 Verbs 0.3 2 4,
    verbs_4_of_4 Verbs 0.3 3 4,
}

pieces! {
    Meeting;
    meetings_over_tcp_1_of_4 Tcp 1.0 0 4,
    meetings_over_tcp_2_of_4 Tcp 1.0 1 4,
    meetings_over_tcp_3_of_4 Tcp 1.0 2 4,
    meetings_over_tcp_4_of_4 Tcp 1.0 3 4,
    meetings_over_loopback_1_of_2 Loopback 0.5 0 2,
    meetings_over_loopback_2_of_2 Loopback 0.5 1 2,
    meetings_over_iwarp Iwarp 0.2 0 1,
    meetings_over_verbs Verbs 0.1 0 1,
}

pieces! {
    Silence;
    silence_over_tcp_1_of_2 Tcp 0.5 0 2,
    silence_over_tcp_2_of_2 Tcp 0.5 1 2,
    silence_over_loopback Loopback 0.3 0 1,
    silence_over_iwarp Iwarp 0.2 0 1,
    silence_over_verbs Verbs 0.1 0 1,
}

pieces! {
    Calm;
    calm_over_tcp Tcp 0.2 0 1,
    calm_over_loopback Loopback 0.3 0 1,
    calm_over_verbs Verbs 0.1 0 1,
}

pieces! {
    Odd;
    odd_targets_1_of_2 Tcp 1.0 0 2,
    odd_targets_2_of_2 Tcp 1.0 1 2,
}

pieces! {
    Library;
    library_1_of_2 Tcp 0.5 0 2,
    library_2_of_2 Tcp 0.5 1 2,
}

pieces! {
    Paths;
    disks_by_several_paths_1_of_2 Tcp 1.0 0 2,
    disks_by_several_paths_2_of_2 Tcp 1.0 1 2,
}

pieces! {
    Sharing;
    sharing_over_tcp Tcp 0.3 0 1,
    sharing_over_loopback Loopback 0.2 0 1,
    sharing_over_iwarp Iwarp 0.1 0 1,
    sharing_over_verbs Verbs 0.1 0 1,
}

pieces! {
    Scarce;
    scarce_buffers_over_tcp Tcp 0.05 0 1,
    scarce_buffers_over_loopback Loopback 0.03 0 1,
    scarce_buffers_over_iwarp Iwarp 0.02 0 1,
    scarce_buffers_over_verbs Verbs 0.02 0 1,
}

pieces! {
    Driven;
    driven_1_of_2 Tcp 0.4 0 2,
    driven_2_of_2 Tcp 0.4 1 2,
}

pieces! {
    Threads;
    threads Tcp 0.3 0 1,
}
