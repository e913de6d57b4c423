//! 1,000 seeds, cut into pieces so that they run beside each other. A failure prints its seed and the command that replays it.

fn seeds(range: std::ops::Range<u64>) {
    let failures: Vec<String> = range
        .filter_map(|seed| sim::run_seed(seed, sim::Transport::Tcp, false).err())
        .map(|failure| failure.to_string())
        .collect();
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
}

macro_rules! pieces {
    ($($name:ident $from:literal $to:literal),* $(,)?) => {$(
        #[test]
        fn $name() {
            seeds($from..$to);
        }
    )*};
}

pieces! {
    seeds_0_to_124 0 125,
    seeds_125_to_249 125 250,
    seeds_250_to_374 250 375,
    seeds_375_to_499 375 500,
    seeds_500_to_624 500 625,
    seeds_625_to_749 625 750,
    seeds_750_to_874 750 875,
    seeds_875_to_999 875 1000,
}
