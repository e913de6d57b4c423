//! Seeds over each transport, cut into pieces so that they run beside each other. A failure prints its seed and the command that replays it.

use std::ops::Range;

use sim::Transport::{self, Iwarp, Loopback, Tcp};

fn seeds(transport: Transport, range: Range<u64>) {
    let failures: Vec<String> = range
        .filter_map(|seed| sim::run_seed(seed, transport, false).err())
        .map(|failure| failure.to_string())
        .collect();
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
}

macro_rules! pieces {
    ($($name:ident $transport:ident $from:literal $to:literal),* $(,)?) => {$(
        #[test]
        fn $name() {
            seeds($transport, $from..$to);
        }
    )*};
}

pieces! {
    tcp_0_to_124 Tcp 0 125,
    tcp_125_to_249 Tcp 125 250,
    tcp_250_to_374 Tcp 250 375,
    tcp_375_to_499 Tcp 375 500,
    tcp_500_to_624 Tcp 500 625,
    tcp_625_to_749 Tcp 625 750,
    tcp_750_to_874 Tcp 750 875,
    tcp_875_to_999 Tcp 875 1000,
    loopback_0_to_249 Loopback 0 250,
    loopback_250_to_499 Loopback 250 500,
    loopback_500_to_749 Loopback 500 750,
    loopback_750_to_999 Loopback 750 1000,
    iwarp_0_to_99 Iwarp 0 100,
    iwarp_100_to_199 Iwarp 100 200,
    iwarp_200_to_299 Iwarp 200 300,
    iwarp_300_to_399 Iwarp 300 400,
}
