//! A seeded pattern: every 512-byte sector says where it belongs, which write it is from, and is filled with bytes that
//! follow from both.
//!
//! A sector that turns up in the wrong place, from an older write, or torn, is told apart from a right one without
//! keeping a copy of the disk.

/// Bytes of one pattern unit.
pub const SECTOR: usize = 512;

fn mix(mut x: u64) -> u64 {
    // SplitMix64's finalizer: every input bit reaches every output bit.
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn words(seed: u64, sector: u64, pass: u64) -> impl Iterator<Item = [u8; 8]> {
    let start = mix(seed ^ mix(sector ^ mix(pass)));
    [sector, pass]
        .into_iter()
        .chain((0..).map(move |n: u64| mix(start.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))))
        .map(u64::to_le_bytes)
}

/// Fills whole sectors, the first being number `sector` of the disk, with write number `pass`.
///
/// # Panics
/// If `data` is not whole sectors.
///
/// ```
/// let mut data = [0; 1024];
/// examples::pattern::fill(&mut data, 7, 100, 1);
/// assert_eq!(examples::pattern::check(&data, 7, 100, 1), Ok(()));
/// assert!(examples::pattern::check(&data, 7, 101, 1).is_err());
/// ```
pub fn fill(data: &mut [u8], seed: u64, sector: u64, pass: u64) {
    let (sectors, rest) = data.as_chunks_mut::<SECTOR>();
    assert!(rest.is_empty(), "the pattern is made of whole sectors");
    for (n, bytes) in sectors.iter_mut().enumerate() {
        for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words(seed, sector + n as u64, pass)) {
            *place = word;
        }
    }
}

/// A sector that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sector {sector} differs at byte {byte}: {found}", found = self.found())]
pub struct Difference {
    /// The sector's number.
    pub sector: u64,
    /// First differing byte in it.
    pub byte: usize,
    /// The pass that was written.
    pub pass: u64,
    /// The number that the sector gives itself.
    pub found_sector: u64,
    /// The pass that the sector gives itself.
    pub found_pass: u64,
}

impl Difference {
    fn found(&self) -> String {
        let Self { sector, byte: _, pass, found_sector, found_pass } = self;
        if (found_sector, found_pass) == (sector, pass) {
            return "it says rightly which one it is, so it is torn or damaged, or was written with another seed"
                .into();
        }
        format!("it says it is sector {found_sector} of pass {found_pass}, where pass {pass} was written")
    }
}

/// Checks whole sectors against [`fill`].
///
/// # Errors
/// The first difference.
///
/// # Panics
/// If `data` is not whole sectors.
pub fn check(data: &[u8], seed: u64, sector: u64, pass: u64) -> Result<(), Difference> {
    let (sectors, rest) = data.as_chunks::<SECTOR>();
    assert!(rest.is_empty(), "the pattern is made of whole sectors");
    for (n, bytes) in sectors.iter().enumerate() {
        let sector = sector + n as u64;
        let (found, _) = bytes.as_chunks::<8>();
        if let Some(at) = found.iter().zip(words(seed, sector, pass)).position(|(found, word)| *found != word) {
            let byte = at * 8;
            return Err(Difference {
                sector,
                byte,
                pass,
                found_sector: u64::from_le_bytes(found[0]),
                found_pass: u64::from_le_bytes(found[1]),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_an_older_pass_and_a_foreign_sector_are_told() {
        let mut data = vec![0; 4 * SECTOR];
        fill(&mut data, 1, 50, 9);
        assert_eq!(check(&data, 1, 50, 9), Ok(()));
        data[2 * SECTOR + 77] ^= 4;
        assert_eq!(check(&data, 1, 50, 9).unwrap_err().sector, 52);
        fill(&mut data, 1, 50, 8);
        assert_eq!(check(&data, 1, 50, 9).unwrap_err().found_pass, 8);
        fill(&mut data, 1, 60, 9);
        assert_eq!(check(&data, 1, 50, 9).unwrap_err().found_sector, 60);
        assert!(check(&data, 1, 50, 9).unwrap_err().to_string().contains("sector 60 of pass 9, where"));
        assert!(check(&data, 2, 60, 9).unwrap_err().to_string().contains("another seed"));
    }
}
