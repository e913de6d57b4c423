//! `--attribute NAME=VALUE`: what one initiator may do to the others, and how LUNs describe themselves, by LIO's names
//! where it has one.

use crate::ending::{Ending, usage};
use target_core::lu::{UnitAttributes, UnitLimits};
use target_core::node;

/// What all targets and all LUNs of a program have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Those of target nodes.
    pub node: node::Attributes,
    /// Those of logical units.
    pub unit: UnitAttributes,
    /// What logical units say of the commands that they take.
    pub limits: UnitLimits,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { node: node::Attributes::open(), unit: UnitAttributes::default(), limits: UnitLimits::default() }
    }
}

/// One that can be set: its name, the values that it takes, and how.
struct Attribute(&'static str, core::ops::RangeInclusive<u32>, fn(&mut Attributes, u32));

const ALL: [Attribute; 14] = [
    Attribute("emulate_tas", 0..=1, |all, value| all.unit.emulate_tas = value != 0),
    Attribute("stop_unit", 0..=1, |all, value| all.unit.stop_unit = value != 0),
    Attribute("mode_select", 0..=1, |all, value| all.unit.mode_select = value != 0),
    Attribute("unmap_granularity", 0..=u32::MAX, |all, value| all.unit.unmap_granularity = Some(value)),
    Attribute("known_nexuses", 1..=1 << 20, |all, value| all.unit.known_nexuses = value as usize),
    Attribute("max_unmap_lba_count", 1..=u32::MAX, |all, value| all.limits.max_unmap_blocks = value),
    Attribute("max_unmap_block_desc_count", 1..=4095, |all, value| all.limits.max_unmap_descriptors = value as u16),
    Attribute("max_write_same_len", 1..=u32::MAX, |all, value| all.limits.max_write_same = value),
    Attribute("max_transfer", 512..=u32::MAX, |all, value| all.limits.max_transfer = value),
    Attribute("cache_dynamic_acls", 0..=1, |all, value| all.node.cache_dynamic_acls = value != 0),
    Attribute("tmr_warm_reset", 0..=1, |all, value| all.node.tmr_warm_reset = value != 0),
    Attribute("tmr_cold_reset", 0..=1, |all, value| all.node.tmr_cold_reset = value != 0),
    Attribute("tmr_lun_reset", 0..=1, |all, value| all.node.tmr_lun_reset = value != 0),
    Attribute("tmr_clear_task_set", 0..=1, |all, value| all.node.tmr_clear_task_set = value != 0),
];

/// What `serve --help` says of them.
pub const HELP: &str = "\
Attributes, of all targets and LUNs, by LIO's names where it has one; a switch is 0 or 1, lengths are in blocks:
  emulate_tas         tasks that another initiator's reset or CLEAR TASK SET ends are answered TASK ABORTED [0]
  tmr_lun_reset, tmr_clear_task_set
                      LOGICAL UNIT RESET and CLEAR TASK SET end the tasks of other initiators too [1]
  tmr_warm_reset, tmr_cold_reset
                      the target resets are carried out [1]
  stop_unit           START STOP UNIT stops a LUN, for all its initiators [0]
  mode_select         MODE SELECT may set write protection and the format of sense data, for all initiators [1]
  unmap_granularity   OPTIMAL UNMAP GRANULARITY as it is told [the store's, 0 where that is 4096 bytes or more:
                      QEMU reads stale zeroes then]
  max_unmap_lba_count, max_unmap_block_desc_count, max_write_same_len
                      most of one UNMAP and of one WRITE SAME [1048576, 256, 524288]
  max_transfer        most bytes of one READ or WRITE [33554432]
  known_nexuses       initiators that a LUN remembers, to tell one that comes back from one that is new [1024]
  cache_dynamic_acls  initiators that need no ACL are listed after logout [1]";

impl Attributes {
    /// Takes one `NAME=VALUE`.
    ///
    /// ```
    /// use examples::attributes::Attributes;
    /// let mut attributes = Attributes::default();
    /// attributes.set("emulate_tas=1").unwrap();
    /// assert!(attributes.unit.emulate_tas);
    /// ```
    ///
    /// # Errors
    /// A name that there is not, and a value that the name does not take: a sentence with what there is.
    pub fn set(&mut self, text: &str) -> Result<(), Ending> {
        let bad = |why: &str| usage(format!("--attribute {text}: {why}"));
        let (name, value) = text.split_once('=').ok_or_else(|| bad("write NAME=VALUE, such as emulate_tas=1"))?;
        let Some(Attribute(_, values, set)) = ALL.iter().find(|attribute| attribute.0 == name) else {
            let names: Vec<_> = ALL.iter().map(|attribute| attribute.0).collect();
            return Err(bad(&format!("there is no {name}; there are {}", names.join(", "))));
        };
        let value = value.parse().ok().filter(|value| values.contains(value));
        let value =
            value.ok_or_else(|| bad(&format!("{name} takes a number from {} to {}", values.start(), values.end())))?;
        set(self, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_changes_something_and_help_tells_of_it() {
        for Attribute(name, values, _) in &ALL {
            assert!(HELP.contains(name), "{name}");
            let set = |value: &u32| {
                let mut attributes = Attributes::default();
                attributes.set(&format!("{name}={value}")).unwrap();
                attributes
            };
            assert_ne!(set(values.start()), set(values.end()), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_gets_a_sentence() {
        let told = |text: &str| Attributes::default().set(text).unwrap_err().to_string();
        assert!(told("emulate_tas").contains("NAME=VALUE"));
        assert!(told("emulate_taz=1").contains("there are emulate_tas, stop_unit"));
        for value in ["2", "yes", "", "-1"] {
            assert!(told(&format!("emulate_tas={value}")).contains("from 0 to 1"));
        }
    }
}
