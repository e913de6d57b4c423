//! What one side offers and declares.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Negotiator, Role};
use crate::keys::settings::{digest_name, number, set_boolean, wanted_boolean, wanted_digests, wanted_number};
use crate::keys::{BooleanFunction, Key, Kind, Use};
use crate::parameters::{Digest, SessionType};
use crate::text::{TextWriter, value};

impl Negotiator {
    /// Writes all that the initiator offers and declares.
    pub fn offer(&mut self, out: &mut TextWriter) {
        let wish = self.config.offer.clone();
        let normal = self.config.session_type == SessionType::Normal;
        for key in Key::ALL {
            let spec = key.spec();
            if spec.usage == Use::LeadingOnly && !self.config.leading {
                continue;
            }
            match key {
                // RFC 7145 6.3: first in the first request of the stage.
                Key::RdmaExtensions if wish.rdma_extensions && normal => self.offer_boolean(key, out),
                Key::HeaderDigest | Key::DataDigest if !self.wants_rdma() => self.offer_digests(key, out),
                Key::MaxRecvDataSegmentLength if !self.wants_rdma() => self.declare_segment(out),
                Key::ErrorRecoveryLevel if !normal => self.offer_number(key, 0, out),
                Key::ErrorRecoveryLevel | Key::DefaultTime2Wait | Key::DefaultTime2Retain => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::InitiatorRecvDataSegmentLength | Key::TargetRecvDataSegmentLength if self.wants_rdma() => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::MaxOutstandingUnexpectedPdus if self.wants_rdma() => self.declare_unexpected(out),
                Key::IserHelloRequired if self.wants_rdma() && wish.iser_hello_required => self.declare_hello(out),
                _ if !normal => {}
                Key::IScsiProtocolLevel if wish.iscsi_protocol_level != 1 => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                // RFC 7143 13.23: an offer has at least RFC3720 and ResponseFence.
                Key::TaskReporting if wish.fast_abort => self.push_offer(key, "FastAbort,ResponseFence,RFC3720", out),
                Key::FirstBurstLength if wish.initial_r2t && !wish.immediate_data => {}
                Key::MaxConnections | Key::MaxBurstLength | Key::FirstBurstLength | Key::MaxOutstandingR2T => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::InitialR2T | Key::ImmediateData | Key::DataPduInOrder | Key::DataSequenceInOrder => {
                    self.offer_boolean(key, out);
                }
                _ => {}
            }
        }
    }

    /// Writes what the target has to say of its own: its MaxRecvDataSegmentLength, and an offer for each key that the
    /// initiator did not mention and whose default the target's settings do not allow. Call it once, after the first
    /// text was received.
    pub fn propose(&mut self, out: &mut TextWriter) {
        let wish = self.config.offer.clone();
        for key in Key::ALL {
            let spec = key.spec();
            if self.settled.contains(key)
                || self.is_irrelevant(key)
                || spec.usage == Use::LeadingOnly && !self.config.leading
            {
                continue;
            }
            match key {
                // RFC 7145 6.3: an initiator that passes over it is asked at the first opportunity.
                Key::RdmaExtensions if wish.rdma_extensions => self.offer_boolean(key, out),
                Key::HeaderDigest | Key::DataDigest if !wanted_digests(&wish, key).contains(&Digest::None) => {
                    self.offer_digests(key, out);
                }
                // An offer of No decides the matter; RFC 7143 6.2.2 makes the answer optional.
                Key::ImmediateData if !wish.immediate_data => self.offer_boolean(key, out),
                Key::MaxBurstLength | Key::InitiatorRecvDataSegmentLength | Key::TargetRecvDataSegmentLength
                    if number(&self.parameters, key) > wanted_number(&wish, key) =>
                {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::FirstBurstLength if self.parameters.first_burst_length > self.most_first_burst() => {
                    self.offer_number(key, self.most_first_burst().into(), out);
                }
                _ => {}
            }
        }
        if !self.parameters.rdma_extensions {
            self.declare_segment(out);
        } else if self.config.leading && self.settled.contains(Key::MaxOutstandingUnexpectedPdus) {
            self.declare_unexpected(out);
        }
    }

    fn push_offer(&mut self, key: Key, value: &str, out: &mut TextWriter) {
        out.push(key.name(), value);
        self.offered.insert(key);
    }

    fn offer_boolean(&mut self, key: Key, out: &mut TextWriter) {
        let yes = wanted_boolean(&self.config.offer, key);
        self.push_offer(key, value::yes_no(yes), out);
        // Where the offer alone decides, it holds without an answer.
        match key.spec().kind {
            Kind::Boolean(BooleanFunction::And) if !yes => set_boolean(&mut self.parameters, key, false),
            Kind::Boolean(BooleanFunction::Or) if yes => set_boolean(&mut self.parameters, key, true),
            _ => {}
        }
    }

    fn offer_number(&mut self, key: Key, number: u64, out: &mut TextWriter) {
        self.push_offer(key, &number.to_string(), out);
    }

    fn offer_digests(&mut self, key: Key, out: &mut TextWriter) {
        let list = self.digest_list(key);
        self.push_offer(key, &list, out);
    }

    pub(super) fn digest_list(&self, key: Key) -> String {
        let names: Vec<_> = wanted_digests(&self.config.offer, key).iter().map(|digest| digest_name(*digest)).collect();
        names.join(",")
    }

    pub(super) fn declare_segment(&mut self, out: &mut TextWriter) {
        let key = Key::MaxRecvDataSegmentLength;
        if self.declared.insert(key) {
            let own = wanted_number(&self.config.offer, key);
            self.parameters.max_recv_data_segment_length = own as u32;
            out.push(key.name(), &own.to_string());
        }
    }

    pub(super) fn declare_unexpected(&mut self, out: &mut TextWriter) {
        let key = Key::MaxOutstandingUnexpectedPdus;
        if self.declared.insert(key) {
            let own = wanted_number(&self.config.offer, key);
            self.parameters.max_outstanding_unexpected_pdus = own as u32;
            out.push(key.name(), &own.to_string());
        }
    }

    fn declare_hello(&mut self, out: &mut TextWriter) {
        let key = Key::IserHelloRequired;
        if self.declared.insert(key) {
            self.parameters.iser_hello_required = true;
            out.push(key.name(), value::yes_no(true));
        }
    }

    pub(super) fn most_first_burst(&self) -> u32 {
        let wanted = wanted_number(&self.config.offer, Key::FirstBurstLength);
        (wanted as u32).min(self.parameters.max_burst_length)
    }

    pub(super) fn offered_number(&self, key: Key) -> u64 {
        match key {
            Key::ErrorRecoveryLevel if self.config.session_type == SessionType::Discovery => 0,
            Key::FirstBurstLength if self.config.role == Role::Target => self.most_first_burst().into(),
            _ => wanted_number(&self.config.offer, key),
        }
    }

    pub(super) fn offered_text(&self, key: Key) -> String {
        match key.spec().kind {
            Kind::List => self.digest_list(key),
            Kind::Boolean(_) => value::yes_no(wanted_boolean(&self.config.offer, key)).to_string(),
            _ => format!("{}", self.offered_number(key)),
        }
    }
}
