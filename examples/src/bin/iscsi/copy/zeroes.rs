//! Runs of zeroes in data.

use std::ops::Range;

/// Bytes that are looked at together: a run of zeroes is so long at least.
const GRAIN: usize = 64 << 10;

/// The runs of a piece in order, and whether each is zeroes. Runs begin at multiples of 64 KiB.
///
/// The last bytes of a piece are a run of their own only when they are as short as the piece ends.
pub(super) fn runs(data: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for (at, grain) in (0..).step_by(GRAIN).zip(data.chunks(GRAIN)) {
        let zero = is_zero(grain);
        match runs.last_mut() {
            Some((run, kind)) if *kind == zero => run.end += grain.len(),
            _ => runs.push((at..at + grain.len(), zero)),
        }
    }
    runs
}

fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart_grain_by_grain() {
        let mut data = vec![0; 5 * GRAIN + 512];
        assert_eq!(runs(&data), [(0..5 * GRAIN + 512, true)]);
        data[2 * GRAIN - 1] = 1;
        data[4 * GRAIN] = 1;
        let expected = [
            (0..GRAIN, true),
            (GRAIN..2 * GRAIN, false),
            (2 * GRAIN..4 * GRAIN, true),
            (4 * GRAIN..5 * GRAIN, false),
            (5 * GRAIN..5 * GRAIN + 512, true),
        ];
        assert_eq!(runs(&data), expected);
        assert!(runs(&[]).is_empty() && !runs(&[0, 1])[0].1);
    }
}
