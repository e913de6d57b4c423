//! Lent memory in parts that end inside logical blocks, where a peer takes no whole ones in a PDU.

use iscsi_memory::Region;

/// Largest logical block in bytes.
const LARGEST_BLOCK: usize = 4096;

/// Reads bytes of a region one part after another, each logical block as it was at one time, also where it lies in two
/// parts.
pub(super) struct Parts<'a> {
    region: &'a Region,
    /// Of the next byte, and of the first behind the last one, in the region.
    at: u64,
    end: u64,
    /// The block that the last part ended in: it ends at byte `kept` of this.
    block: [u8; LARGEST_BLOCK],
    kept: usize,
    /// Bytes of it that are still to be given.
    left: usize,
}

impl<'a> Parts<'a> {
    /// The bytes `offset..offset + len` of a region, if parts of any of these sizes end inside blocks.
    pub(super) fn within_blocks(region: &'a Region, offset: u64, len: usize, sizes: [usize; 2]) -> Option<Self> {
        let block = region.block_size();
        sizes.iter().any(|size| !size.is_multiple_of(block)).then(|| Self {
            region,
            at: offset,
            end: offset + len as u64,
            block: [0; LARGEST_BLOCK],
            kept: 0,
            left: 0,
        })
    }

    /// The next bytes.
    pub(super) fn read(&mut self, to: &mut [u8]) {
        let to = self.give_kept(to);
        let size = self.region.block_size() as u64;
        let end = self.at + to.len() as u64;
        let whole = if end >= self.end { to.len() } else { ((end / size * size).saturating_sub(self.at)) as usize };
        let (whole, part) = to.split_at_mut(whole);
        self.region.read(self.at, whole);
        self.at += whole.len() as u64;
        if !part.is_empty() {
            self.kept = (size - self.at % size).min(self.end - self.at) as usize;
            self.left = self.kept;
            let (at, block) = (self.at, self.block.get_mut(..self.kept).unwrap_or_default());
            self.region.read(at, block);
            self.at += self.kept as u64;
            self.give_kept(part);
        }
    }

    /// Gives what is left of the block that was begun. What there is room for behind it.
    fn give_kept<'t>(&mut self, to: &'t mut [u8]) -> &'t mut [u8] {
        let n = self.left.min(to.len());
        let (now, later) = to.split_at_mut(n);
        now.copy_from_slice(self.block.get(self.kept - self.left..self.kept - self.left + n).unwrap_or_default());
        self.left -= n;
        later
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn parts_of_any_size_hold_blocks_of_one_time() {
        for (offset, part) in [(0, 100), (512, 700), (1024, 1), (512, 1536), (0, 5000)] {
            let region = Region::heap(16 << 10);
            region.write(0, &[1; 16 << 10]);
            let len = 8192;
            let mut parts = Parts::within_blocks(&region, offset, len, [part, 1 << 20]).unwrap_or_else(|| {
                assert_eq!(part % 512, 0);
                Parts::within_blocks(&region, offset, len, [1, 1]).unwrap()
            });
            let (mut all, mut round) = (Vec::new(), 1);
            while all.len() < len {
                let mut to = vec![0; part.min(len - all.len())];
                parts.read(&mut to);
                all.extend(to);
                // Everything is written anew between two parts.
                round = round % 250 + 1;
                region.write(0, &vec![round; 16 << 10]);
            }
            for block in all.chunks(512) {
                assert!(block.iter().all(|byte| *byte == block[0]), "offset {offset}, parts of {part}");
            }
        }
    }

    #[test]
    fn whole_blocks_need_no_care() {
        assert!(Parts::within_blocks(&Region::heap(8192), 0, 8192, [1024, 512]).is_none());
    }
}
