//! Switches of a logical unit.

/// What a logical unit lets initiators do to each other, and how it describes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitAttributes {
    /// START STOP UNIT with START=0 stops the unit for all its initiators, until one starts it (SBC-4 5.31). Default
    /// false: the caches are written, the status is GOOD, and nothing changes, because the power-down of one host must
    /// not take a shared disk from the others.
    pub stop_unit: bool,
    /// MODE SELECT may change what all initiators share: SWP and D_SENSE of the Control mode page. Default true.
    pub mode_select: bool,
    /// TAS of the Control mode page (SPC-5 7.5.10), by LIO's name: whoever loses tasks to another I_T nexus's function
    /// is told by the status TASK ABORTED for each of them, once nothing of it is under way. After a reset the unit
    /// attention is there all the same; after CLEAR TASK SET the status replaces it. Default false: the unit attention
    /// alone tells, and an initiator may wait for its tasks until its own time limit.
    pub emulate_tas: bool,
    /// OPTIMAL UNMAP GRANULARITY of the Block Limits VPD page in blocks, by LIO's name; 0 tells none. Default `None`:
    /// the store's own where it is below 4096 bytes, else 0. From 4096 bytes on, QEMU's driver keeps a map of what is
    /// allocated, and a stale entry of it makes a guest read zeroes where its data are. Linux takes the granularity of
    /// its discards from the physical block.
    pub unmap_granularity: Option<u32>,
    /// I_T nexuses that the unit remembers, at least 1 and 16 bytes each, to tell one that comes back (29h/07h, its
    /// data are as they were) from a new one (29h/01h). Once more have come, one that is not remembered is told
    /// 29h/00h, which leaves open what happened. Default 1024.
    pub known_nexuses: usize,
}

impl Default for UnitAttributes {
    fn default() -> Self {
        Self { stop_unit: false, mode_select: true, emulate_tas: false, unmap_granularity: None, known_nexuses: 1024 }
    }
}
