//! The options as they are given, by the names of the command line.

use serde::Deserialize;

use super::RdmaChoice;
use super::file::{one_secret, secrets};

/// Options of `ramdisk serve`, from the command line or from a file. Each is what was written, not read yet.
///
/// There is no `Debug`: it would show secrets.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `ADDR:PORT` or `ADDR:PORT,iser`.
    pub portal: Vec<String>,
    /// What carries iSER.
    pub rdma: Option<RdmaChoice>,
    /// A size, such as `256M`.
    pub registered_memory: Option<String>,
    /// The targets, each with its LUNs.
    pub target: Vec<TargetOptions>,
    /// `USER:SECRET` of initiators.
    #[serde(deserialize_with = "secrets")]
    pub chap: Vec<String>,
    /// `USER:SECRET` of the targets.
    #[serde(deserialize_with = "one_secret")]
    pub mutual_chap: Option<String>,
    /// Names of the initiators that may log in.
    pub initiator: Vec<String>,
    /// Initiators may read only.
    pub read_only: bool,
    /// `NAME=VALUE`.
    pub attribute: Vec<String>,
    /// RAM LUNs are the same disks with each start.
    pub lasting_identity: bool,
}

/// One target of the [`Options`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetOptions {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// `SIZE`, `file:PATH` or `null:SIZE`, LUN 0 first.
    pub lun: Vec<String>,
}

impl Options {
    /// These options and then `more`: lists go on, a switch is on if either says so, and of one value `more` has the
    /// last word.
    ///
    /// ```
    /// use examples::layout::Options;
    /// let portal = |address: &str| Options { portal: vec![address.into()], ..Options::default() };
    /// assert_eq!(portal("a:1").and(portal("b:2")).portal, ["a:1", "b:2"]);
    /// ```
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        self.portal.extend(more.portal);
        self.target.extend(more.target);
        self.chap.extend(more.chap);
        self.initiator.extend(more.initiator);
        self.attribute.extend(more.attribute);
        Self {
            rdma: more.rdma.or(self.rdma),
            registered_memory: more.registered_memory.or(self.registered_memory),
            mutual_chap: more.mutual_chap.or(self.mutual_chap),
            read_only: self.read_only || more.read_only,
            lasting_identity: self.lasting_identity || more.lasting_identity,
            ..self
        }
    }
}
