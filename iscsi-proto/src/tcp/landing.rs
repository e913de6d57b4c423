//! Write data on their way into a store's memory: logical blocks land whole, whatever the pieces are in which they
//! come.

use alloc::vec::Vec;

use iscsi_memory::RegionSlice;

/// What became of bytes that are to land.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Landed {
    /// So many of them are in their place, or in `begun`. The rest is to be brought again, with what comes behind it.
    pub(super) bytes: usize,
    /// The rest may not land now.
    pub(super) refused: bool,
}

/// Lands bytes `place..` of a transfer, which come in order, as far as they are whole blocks. `begun` keeps the first
/// bytes of a block whose rest comes in another PDU: `ends` tells that no more come in this one. The end of the slice
/// ends a block.
pub(super) fn land(slice: &RegionSlice, place: usize, from: &[u8], begun: &mut Vec<u8>, ends: bool) -> Landed {
    let block = slice.region().block_size();
    let mut done = 0;
    if !begun.is_empty() {
        let start = place - begun.len();
        let missing = block.min(slice.len() - start) - begun.len();
        done = missing.min(from.len());
        begun.extend_from_slice(from.get(..done).unwrap_or_default());
        if done < missing {
            return Landed { bytes: done, refused: false };
        }
        if !slice.try_write(start, begun) {
            begun.truncate(place - start);
            return Landed { bytes: 0, refused: true };
        }
        begun.clear();
    }
    let (at, rest) = (place + done, from.get(done..).unwrap_or_default());
    let whole = if at + rest.len() == slice.len() { rest.len() } else { rest.len() / block * block };
    let (whole, part) = rest.split_at_checked(whole).unwrap_or_default();
    if !whole.is_empty() && !slice.try_write(at, whole) {
        return Landed { bytes: done, refused: true };
    }
    done += whole.len();
    if ends && !part.is_empty() {
        begun.reserve_exact(block);
        begun.extend_from_slice(part);
        done += part.len();
    }
    Landed { bytes: done, refused: false }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use iscsi_memory::Region;

    use super::*;

    fn content(slice: &RegionSlice) -> Vec<u8> {
        let mut bytes = vec![0; slice.len()];
        slice.read(0, &mut bytes);
        bytes
    }

    #[test]
    fn whatever_the_pieces_only_whole_blocks_land() {
        let data: Vec<u8> = (0..6 * 512u32).map(|at| (at % 251 + 1) as u8).collect();
        // PDUs of so many bytes, of which so many come at a time.
        for (pdu, step) in [(512, 512), (512, 100), (700, 700), (700, 64), (100, 100), (1600, 999), (3072, 700), (1, 1)]
        {
            let region = Region::heap(1 << 16);
            let slice = region.slice(1024, data.len());
            let (mut begun, mut place, mut pending) = (Vec::new(), 0, 0);
            while place < data.len() {
                let end = (place / pdu + 1) * pdu;
                pending = (pending + step).min(end.min(data.len()) - place);
                let from = &data[place..place + pending];
                let landed = land(&slice, place, from, &mut begun, place + pending == end);
                assert!(!landed.refused);
                place += landed.bytes;
                pending -= landed.bytes;
                for (block, sent) in content(&slice).chunks(512).zip(data.chunks(512)) {
                    assert!(block == sent || block.iter().all(|byte| *byte == 0), "{pdu} {step}: a torn block");
                }
            }
            assert_eq!((content(&slice) == data, begun.len()), (true, 0), "{pdu} {step}");
        }
    }

    #[test]
    fn what_is_refused_comes_again() {
        #[derive(Debug)]
        struct Shut(core::sync::atomic::AtomicBool);
        impl iscsi_memory::Landing for Shut {
            fn try_land(&self, _: u64, _: u64, copy: &mut dyn FnMut()) -> bool {
                let open = !self.0.load(core::sync::atomic::Ordering::Relaxed);
                if open {
                    copy();
                }
                open
            }
        }
        let shut = alloc::sync::Arc::new(Shut(true.into()));
        let slice = Region::heap(4096).slice(0, 1536).with_landing(shut.clone());
        let (data, mut begun) = ([7; 1536], Vec::new());
        assert_eq!(land(&slice, 0, &data[..700], &mut begun, true), Landed { bytes: 0, refused: true });
        shut.0.store(false, core::sync::atomic::Ordering::Relaxed);
        assert_eq!(land(&slice, 0, &data[..700], &mut begun, true), Landed { bytes: 700, refused: false });
        shut.0.store(true, core::sync::atomic::Ordering::Relaxed);
        assert_eq!(land(&slice, 700, &data[700..], &mut begun, true), Landed { bytes: 0, refused: true });
        assert_eq!((begun.len(), content(&slice)[512]), (188, 0));
        shut.0.store(false, core::sync::atomic::Ordering::Relaxed);
        assert_eq!(land(&slice, 700, &data[700..], &mut begun, true), Landed { bytes: 836, refused: false });
        assert_eq!(content(&slice), [7; 1536]);
    }
}
