//! Text requests in the Full Feature Phase: SendTargets, and keys that may change there (RFC 7143 6.4, 13.3, Appendix
//! C).

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec::Vec;

use iscsi_proto::datamover::Datamover;
use iscsi_proto::keys::{Key, NegotiationPhase, Negotiator, NegotiatorConfig, Role};
use iscsi_proto::name::IscsiName;
use iscsi_proto::pdu::{Bhs, RESERVED_TAG, RejectReason, TextRequest, TextResponse};
use iscsi_proto::text::exchange::ResponderStep;
use iscsi_proto::text::targets::{SendTargets, TargetAddress, TargetRecord};
use iscsi_proto::text::{Pair, REJECT, TextWriter};

use super::connection::Connection;
use super::session::Session;
use super::wire;
use crate::node::TargetNode;

impl Session {
    /// A Text Request whose turn it is. Its text is in `scratch`.
    pub(super) fn text_request<M: Datamover>(&mut self, connection: &mut Connection<M>, bhs: &Bhs) {
        let request = match TextRequest::parse(bhs) {
            Ok(request) => request,
            Err(error) => return connection.reject(&self.commands.window, bhs, wire::header(&error)),
        };
        if request.ttt == RESERVED_TAG {
            // RFC 7143 11.10.4: it begins anew, and what was agreed on before the end of the last one never holds.
            connection.negotiation = None;
        }
        match connection.text.handle_request(&request, &connection.scratch) {
            Ok(ResponderStep::Respond(response, data)) => self.send_text(connection, response, &data),
            Ok(ResponderStep::Complete) => {
                let Some(answer) = self.answer_text(connection) else {
                    // RFC 7143 6.2, 7.12: a negotiation that fails in the Full Feature Phase leaves everything as it
                    // was.
                    connection.reset_text();
                    return connection.reject(&self.commands.window, bhs, RejectReason::ProtocolError);
                };
                let most = connection.parameters.peer_max_recv_data_segment_length as usize;
                if let Some((response, data)) = connection.text.answer(answer, most) {
                    self.send_text(connection, response, &data);
                }
            }
            Err(error) => {
                connection.reset_text();
                connection.reject(&self.commands.window, bhs, wire::text(&error));
            }
        }
    }

    fn send_text<M: Datamover>(&mut self, connection: &mut Connection<M>, response: TextResponse, data: &[u8]) {
        let response = TextResponse {
            stat_sn: connection.take_stat_sn(),
            exp_cmd_sn: self.commands.window.expected(),
            max_cmd_sn: self.commands.window.max(),
            ..response
        };
        connection.mover.send_control(response.emit(), data);
        if response.is_final
            && let Some(negotiation) = connection.negotiation.take()
            && let Ok(parameters) = negotiation.finish()
            && parameters != connection.parameters
        {
            connection.mover.notice_key_values(&parameters);
            connection.parameters = parameters;
        }
    }

    /// The answer to the request's text; none when the negotiation fails. What is agreed on holds when the last
    /// response is sent (RFC 7143 6.4).
    fn answer_text<M>(&self, connection: &mut Connection<M>) -> Option<TextWriter> {
        let mut answer = TextWriter::new();
        let mut others: Vec<Pair<'_>> = Vec::new();
        for pair in connection.text.request().pairs().ok()? {
            if Key::from_name(pair.key) == Some(Key::SendTargets) {
                self.send_targets(SendTargets::from_value(pair.value), &mut answer);
            } else {
                others.push(pair);
            }
        }
        if others.is_empty() {
            return Some(answer);
        }
        let mut negotiator = connection.negotiation.clone().unwrap_or_else(|| {
            Box::new(Negotiator::new(NegotiatorConfig {
                role: Role::Target,
                phase: NegotiationPhase::FullFeature,
                session_type: connection.parameters.session_type,
                leading: true,
                offer: self.target.limits.offer.clone(),
                before: connection.parameters.clone(),
            }))
        });
        negotiator.receive(others, &mut answer).ok()?;
        Negotiator::clone(&negotiator).finish().ok()?;
        connection.negotiation = Some(negotiator);
        Some(answer)
    }

    fn send_targets(&self, question: SendTargets<'_>, answer: &mut TextWriter) {
        let config = &self.target.config;
        let session = self.entry.session.normal.as_ref();
        let record = |node: &TargetNode| {
            // A normal session is proof enough that the initiator may see its own target.
            let own = session.is_some_and(|(own, ..)| own.name() == node.name());
            if own || node.access(&self.entry.session.initiator).is_some() {
                self.record(node).write(answer);
            }
        };
        match (question, session) {
            (SendTargets::All, None) => config.nodes().iter().map(AsRef::as_ref).for_each(record),
            (SendTargets::Named(name), _) => {
                let node = IscsiName::new(name).ok().and_then(|name| config.node(&name));
                // RFC 7143 Appendix C: a normal session hears of its own target only.
                let told = |node: &&TargetNode| session.is_none_or(|(own, ..)| own.name() == node.name());
                node.map(AsRef::as_ref).filter(told).into_iter().for_each(record);
            }
            (SendTargets::Current, Some((node, ..))) => [node.as_ref()].into_iter().for_each(record),
            // RFC 7143 Appendix C: All is for discovery sessions, and there the empty value means nothing.
            (SendTargets::All, Some(_)) | (SendTargets::Current, None) => {
                answer.push(Key::SendTargets.name(), REJECT);
            }
        }
    }

    /// A node with the portals of this connection's transport, as this initiator can reach them.
    fn record(&self, node: &TargetNode) -> TargetRecord {
        let local = self.entry.session.endpoints.local;
        let iser = self.entry.session.transport == "iser";
        let mut addresses: Vec<TargetAddress> = Vec::new();
        for group in node.portal_groups() {
            for portal in group.portals().iter().filter(|portal| portal.iser() || !iser) {
                let address = portal.address_for(local);
                let address = TargetAddress {
                    host: address.ip().to_string(),
                    port: address.port(),
                    group_tag: Some(group.tag()),
                };
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        TargetRecord { name: node.name().to_string(), addresses }
    }
}
