//! Who may use a target node, and how: attributes by LIO's names, and ACLs per initiator.

use alloc::string::String;
use alloc::vec::Vec;

use iscsi_proto::login::ChapAccount;

/// The switches of a target node, by the names and, for those of access, with the defaults that LIO gives them.
///
/// What a `tmr_` switch allows holds for initiators that may write: from a nexus that finds a LUN write-protected,
/// LOGICAL UNIT RESET and CLEAR TASK SET of it reach only the sender's own tasks, and a nexus with such a LUN has no
/// authorization for the target resets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Initiators authenticate with CHAP. Default true.
    pub authentication: bool,
    /// Initiators that come in by demo mode find every LUN write-protected. Default true.
    pub demo_mode_write_protect: bool,
    /// Demo mode: initiators without an ACL are let in, and see every LUN. Default false.
    pub generate_node_acls: bool,
    /// An initiator that demo mode let in stays in the list of ACLs after logout. Default false.
    pub cache_dynamic_acls: bool,
    /// TARGET WARM RESET is carried out, which aborts the tasks of all initiators on the LUNs of its sender; without it
    /// the answer is "function authorization failed". Default true.
    pub tmr_warm_reset: bool,
    /// TARGET COLD RESET is carried out, which in addition ends all sessions with the node; without it the answer is
    /// "function authorization failed". Default true.
    pub tmr_cold_reset: bool,
    /// LOGICAL UNIT RESET reaches the tasks of other initiators; without it, only those of its sender, and the unit
    /// itself is not reset. LIO has no name for it. Default true.
    pub tmr_lun_reset: bool,
    /// CLEAR TASK SET reaches the tasks of other initiators; without it, only those of its sender. LIO has no name for
    /// it. Default true.
    pub tmr_clear_task_set: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            authentication: true,
            demo_mode_write_protect: true,
            generate_node_acls: false,
            cache_dynamic_acls: false,
            tmr_warm_reset: true,
            tmr_cold_reset: true,
            tmr_lun_reset: true,
            tmr_clear_task_set: true,
        }
    }
}

impl Attributes {
    /// No security at all: any initiator logs in without a secret and may write.
    #[must_use]
    pub const fn open() -> Self {
        Self {
            authentication: false,
            demo_mode_write_protect: false,
            generate_node_acls: true,
            cache_dynamic_acls: true,
            tmr_warm_reset: true,
            tmr_cold_reset: true,
            tmr_lun_reset: true,
            tmr_clear_task_set: true,
        }
    }
}

/// A LUN as one initiator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AclLun {
    /// The number by which the initiator addresses it.
    pub number: u16,
    /// The node's own number for it.
    pub lun: u16,
    /// Whether the initiator finds it write-protected.
    pub read_only: bool,
}

/// One initiator's entry: LUN masking, its own account, its switches.
///
/// ```
/// use target_core::node::Acl;
/// let acl = Acl::new("iqn.2026-11.example.client:boot").map_lun(0, 2).map_read_only_lun(1, 0).without_nop_in();
/// ```
#[derive(Debug, Clone)]
pub struct Acl {
    pub(super) initiator: String,
    pub(super) accounts: Vec<ChapAccount>,
    pub(super) luns: Vec<AclLun>,
    pub(super) nop_in: bool,
}

impl Acl {
    /// An entry for the initiator of that name. It sees every LUN of the node until one is mapped.
    #[must_use]
    pub fn new(initiator: impl Into<String>) -> Self {
        Self { initiator: initiator.into(), accounts: Vec::new(), luns: Vec::new(), nop_in: true }
    }

    /// Lets the initiator log in with this account; without one of its own it uses the node's.
    #[must_use]
    pub fn account(mut self, account: ChapAccount) -> Self {
        self.accounts.push(account);
        self
    }

    /// Shows the node's LUN `lun` to the initiator as LUN `number`. What is not mapped is not seen, once one is.
    #[must_use]
    pub fn map_lun(mut self, number: u16, lun: u16) -> Self {
        self.luns.push(AclLun { number, lun, read_only: false });
        self
    }

    /// As [`map_lun`](Self::map_lun), write-protected.
    #[must_use]
    pub fn map_read_only_lun(mut self, number: u16, lun: u16) -> Self {
        self.luns.push(AclLun { number, lun, read_only: true });
        self
    }

    /// Sends this initiator no NOP-In that it did not ask for: the initiator of iPXE cannot handle one.
    #[must_use]
    pub fn without_nop_in(mut self) -> Self {
        self.nop_in = false;
        self
    }
}
