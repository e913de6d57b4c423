//! What stands behind a LUN after a new login, and whether it still has what was written.

use alloc::string::String;

use scsi_proto::capacity::ReadCapacity16;
use scsi_proto::inquiry::Peripheral;
use scsi_proto::vpd::{Designator, DesignatorId, VpdPage};

use super::*;
use crate::{Identity, KnownDisk};

fn disk(name: u8) -> Identity {
    let names = [Designator::of_unit(DesignatorId::Naa16([name; 16]))].into();
    Identity { names, serial: Some(String::from("A1")), block_size: 512, blocks: 64 }
}

fn guarded(command: Command) -> Command {
    Command { guard: Some(0), ..command }
}

fn flush(token: u64) -> Command {
    guarded(Command::new(token, Lun::ZERO, BlockIo::new(0, 0).synchronize_cache()))
}

/// A session with a guard for a disk with a volatile cache.
fn session() -> Net {
    let mut net = Net::new(INFINITE);
    let guard =
        Control::Guard { id: 1, disk: KnownDisk { lun: Lun::ZERO, identity: disk(0x61), volatile: true }, login: 1 };
    net.app().controls.push_back(guard);
    net.run();
    assert_eq!(net.app().answers.pop(), Some((1, ControlAnswer::Guarded(0))));
    net
}

fn again(net: &mut Net) {
    let engine = net.cut();
    net.connect(engine);
    net.run();
}

/// Answers the questions after a new login as this disk does, its capacity last, with `attention` before it.
fn introduce(net: &mut Net, disk: &Identity, attention: Option<AdditionalSense>) {
    let names = VpdPage::DeviceIdentification(disk.names.clone()).to_bytes(Peripheral::DISK);
    let serial = VpdPage::UnitSerialNumber(disk.serial.clone().unwrap_or_default()).to_bytes(Peripheral::DISK);
    for page in [names, serial] {
        let command = net.expect_command();
        assert_eq!(command.cdb[..2], [opcode::INQUIRY, 1]);
        assert!(net.got.is_empty(), "nothing else before it is known who is there");
        net.respond(&command, &page, Status::Good, &[]);
    }
    let mut command = net.expect_command();
    if let Some(code) = attention {
        net.respond(&command, &[], Status::CheckCondition, &sense(SenseKey::UnitAttention, code));
        command = net.expect_command();
    }
    assert_eq!(command.cdb[0], opcode::SERVICE_ACTION_IN_16);
    assert!(net.got.is_empty());
    let capacity = ReadCapacity16 {
        last_lba: disk.blocks - 1,
        block_length: disk.block_size,
        protection: None,
        protection_interval_exponent: 0,
        physical_block_exponent: 0,
        thin: false,
        unmapped_reads_zero: false,
        lowest_aligned_lba: 0,
    };
    net.respond(&command, &capacity.to_bytes(), Status::Good, &[]);
}

#[test]
fn after_a_new_login_nothing_is_sent_before_the_disk_is_known_to_be_the_same() {
    let mut net = session();
    net.app().commands.extend([guarded(write(1, BlockIo::new(0, 1).write(), 512)), guarded(read(2))]);
    net.run();
    for _ in 0..2 {
        net.expect_command();
    }
    again(&mut net);
    introduce(&mut net, &disk(0x61), None);
    for token in [1, 2] {
        let command = net.expect_command();
        net.good(&command);
        assert!(net.result(token).unwrap().is_good());
    }
    net.app().commands.push_back(guarded(read(3)));
    net.run();
    assert_eq!(net.expect_command().cdb[0], opcode::READ_10, "it is asked once for each login");
}

#[test]
fn another_disk_gets_not_one_command() {
    let others = [
        disk(0x62),
        Identity { serial: Some(String::from("B2")), ..disk(0x61) },
        Identity { block_size: 4096, ..disk(0x61) },
        Identity { blocks: 63, ..disk(0x61) },
    ];
    for other in others {
        let mut net = session();
        net.app().commands.push_back(guarded(write(1, BlockIo::new(0, 1).write(), 512)));
        net.run();
        net.expect_command();
        again(&mut net);
        introduce(&mut net, &other, None);
        assert_eq!(net.result(1), Err(Failure::OtherDisk), "{other:?}");
        net.app().commands.extend([guarded(read(2)), flush(3), read(4)]);
        net.run();
        assert_eq!([net.result(2), net.result(3)], [Err(Failure::OtherDisk); 2]);
        assert_eq!(net.expect_command().cdb[0], opcode::READ_10, "what stands behind no guard passes");
        assert!(net.got.is_empty());
        // Nor after the next login.
        again(&mut net);
        net.expect_command();
        net.app().commands.push_back(guarded(read(5)));
        net.run();
        assert_eq!(net.result(5), Err(Failure::OtherDisk));
    }
}

#[test]
fn a_larger_disk_is_the_same() {
    let mut net = session();
    again(&mut net);
    net.app().commands.push_back(guarded(read(1)));
    net.run();
    introduce(&mut net, &Identity { blocks: 128, ..disk(0x61) }, None);
    let command = net.expect_command();
    net.good(&command);
    // It does not shrink back.
    again(&mut net);
    net.app().commands.push_back(guarded(read(2)));
    net.run();
    introduce(&mut net, &disk(0x61), None);
    assert_eq!(net.result(2), Err(Failure::OtherDisk));
}

#[test]
fn a_unit_that_tells_of_a_change_is_asked_though_no_command_waits() {
    let mut net = session();
    // A raw command meets it and is not repeated.
    net.app().commands.push_back(Command { retry: false, ..read(1) });
    net.run();
    let command = net.expect_command();
    let grown = sense(SenseKey::UnitAttention, AdditionalSense::CAPACITY_DATA_HAS_CHANGED);
    net.respond(&command, &[], Status::CheckCondition, &grown);
    introduce(&mut net, &Identity { blocks: 128, ..disk(0x61) }, None);
    assert!(net.app().sizes.contains(&128));
    assert!(net.got.is_empty(), "it is asked once");
}

#[test]
fn a_lun_without_a_unit_ends_commands_and_is_asked_anew_for_the_next() {
    let mut net = session();
    again(&mut net);
    net.app().commands.push_back(guarded(read(1)));
    net.run();
    let command = net.expect_command();
    let gone = sense(SenseKey::IllegalRequest, AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
    net.respond(&command, &[], Status::CheckCondition, &gone);
    let outcome = net.result(1).unwrap();
    assert_eq!(outcome.sense.map(|sense| sense.code), Some(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED));
    net.app().commands.push_back(guarded(read(2)));
    net.run();
    introduce(&mut net, &disk(0x61), None);
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(2).is_ok());
}

#[test]
fn a_connection_lost_amid_the_questions_begins_them_anew() {
    let mut net = session();
    again(&mut net);
    net.app().commands.push_back(guarded(read(1)));
    net.run();
    net.expect_command();
    again(&mut net);
    introduce(&mut net, &disk(0x61), None);
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(1).is_ok() && net.app().done.is_empty());
}

fn written(net: &mut Net, token: u64, lba: u64) {
    net.app().commands.push_back(guarded(write(token, BlockIo::new(lba, 2).write(), 1024)));
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(token).is_ok());
}

#[test]
fn what_was_acknowledged_and_not_flushed_is_lost_with_the_power() {
    for code in [
        AdditionalSense::POWER_ON_OCCURRED,
        AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED,
        AdditionalSense::DEVICE_INTERNAL_RESET,
    ] {
        let mut net = session();
        written(&mut net, 1, 0);
        net.app().commands.push_back(flush(2));
        net.run();
        let command = net.expect_command();
        net.good(&command);
        written(&mut net, 3, 8);
        net.app().commands.push_back(flush(4));
        net.run();
        net.expect_command();
        again(&mut net);
        introduce(&mut net, &disk(0x61), Some(code));
        // The flush would be good for what is not there any more.
        assert_eq!(net.result(4), Err(Failure::LostWrites));
        net.app().commands.push_back(guarded(read(5)));
        net.run();
        assert_eq!(net.result(5), Err(Failure::LostWrites));
        net.app().controls.push_back(Control::TakeLost { id: 9, guard: 0 });
        net.run();
        assert_eq!(net.app().answers.pop(), Some((9, ControlAnswer::Lost(alloc::vec![8..10; 1]))));
        net.app().commands.push_back(guarded(read(6)));
        net.run();
        let command = net.expect_command();
        net.good(&command);
        assert!(net.result(6).is_ok());
    }
}

#[test]
fn a_flush_that_fails_is_remembered() {
    let medium = sense(SenseKey::MediumError, AdditionalSense::WRITE_ERROR);
    // LIO's answer: ILLEGAL REQUEST, with a code of its own.
    let lio = sense(SenseKey::IllegalRequest, AdditionalSense::new(0x80, 0));
    for error in [medium, lio] {
        let mut net = session();
        written(&mut net, 1, 0);
        net.app().commands.push_back(flush(2));
        net.run();
        let command = net.expect_command();
        net.respond(&command, &[], Status::CheckCondition, &error);
        assert!(net.result(2).is_ok_and(|outcome| !outcome.is_good()));
        let flushes = |net: &mut Net, token| {
            net.app().commands.push_back(flush(token));
            net.run();
            let command = net.expect_command();
            net.good(&command);
            net.result(token)
        };
        // The system below the target has dropped the data, and says it once.
        assert_eq!(flushes(&mut net, 3), Err(Failure::LostWrites));
        net.app().commands.push_back(guarded(read(4)));
        net.run();
        let command = net.expect_command();
        net.good(&command);
        assert!(net.result(4).is_ok());
        written(&mut net, 5, 0);
        assert!(flushes(&mut net, 6).is_ok());
    }
}

#[test]
fn a_flush_that_the_disk_did_not_begin_with_loses_nothing() {
    let mut net = session();
    written(&mut net, 1, 0);
    let refusals = [
        (Status::ReservationConflict, Vec::new()),
        (
            Status::CheckCondition,
            sense(SenseKey::IllegalRequest, AdditionalSense::INVALID_COMMAND_OPERATION_CODE).to_vec(),
        ),
    ];
    for (status, sense) in refusals {
        net.app().commands.push_back(flush(2));
        net.run();
        let command = net.expect_command();
        net.respond(&command, &[], status, &sense);
        assert!(net.result(2).is_ok_and(|outcome| !outcome.is_good()));
    }
    net.app().commands.push_back(flush(3));
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(3).is_ok());
}

#[test]
fn no_flush_is_good_after_the_greeting_of_a_target_that_tells_every_nexus_of_a_reset() {
    let code = AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED;
    let mut net = session();
    net.app().commands.push_back(guarded(read(1)));
    net.run();
    let command = net.expect_command();
    net.respond(&command, &[], Status::CheckCondition, &sense(SenseKey::UnitAttention, code));
    introduce(&mut net, &disk(0x61), None);
    let command = net.expect_command();
    net.good(&command);
    written(&mut net, 2, 0);
    again(&mut net);
    net.app().commands.push_back(flush(3));
    net.run();
    introduce(&mut net, &disk(0x61), Some(code));
    let command = net.expect_command();
    net.good(&command);
    assert_eq!(net.result(3), Err(Failure::LostWrites), "nobody knows whether it was switched off");
    // Reads and writes go on, and what is written anew is not in doubt.
    written(&mut net, 6, 0);
    net.app().commands.push_back(flush(7));
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(7).is_ok());
    // A power-on by name is one.
    written(&mut net, 4, 0);
    again(&mut net);
    net.app().commands.push_back(flush(5));
    net.run();
    introduce(&mut net, &disk(0x61), Some(AdditionalSense::POWER_ON_OCCURRED));
    assert_eq!(net.result(5), Err(Failure::LostWrites));
}

#[test]
fn a_short_cut_loses_nothing() {
    let mut net = session();
    written(&mut net, 1, 0);
    again(&mut net);
    net.app().commands.push_back(flush(2));
    net.run();
    introduce(&mut net, &disk(0x61), Some(AdditionalSense::I_T_NEXUS_LOSS_OCCURRED));
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(2).is_ok());
}

#[test]
fn a_full_table_leaves_room_for_the_questions() {
    let mut net = session();
    net.app().commands.extend((0..20).map(|token| guarded(read(token))));
    net.run();
    again(&mut net);
    introduce(&mut net, &disk(0x61), None);
    while let Some((bhs, _)) = net.got.pop_front() {
        net.good(&ScsiCommand::parse(&bhs).unwrap());
    }
    assert_eq!(net.app().done.len(), 20);
}

#[test]
fn an_error_that_is_told_late_is_one_of_what_was_acknowledged_before() {
    let mut net = session();
    written(&mut net, 1, 0);
    net.app().commands.push_back(guarded(read(2)));
    net.run();
    let command = net.expect_command();
    let late = Sense { deferred: true, ..Sense::new(SenseKey::MediumError, AdditionalSense::WRITE_ERROR) };
    net.respond(&command, &[], Status::CheckCondition, &late.to_bytes(SenseFormat::Fixed));
    assert!(net.result(2).is_ok_and(|outcome| !outcome.is_good()));
    net.app().commands.push_back(flush(3));
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert_eq!(net.result(3), Err(Failure::LostWrites));
}

#[test]
fn a_unit_need_not_tell_what_it_did_not_tell_when_it_was_opened() {
    let mut net = Net::new(INFINITE);
    let known = Identity { names: Vec::new(), serial: None, ..disk(0x61) };
    let disk = KnownDisk { lun: Lun::ZERO, identity: known, volatile: true };
    net.app().controls.push_back(Control::Guard { id: 1, disk, login: 1 });
    net.run();
    again(&mut net);
    net.app().commands.push_back(guarded(read(1)));
    net.run();
    let broken = sense(SenseKey::HardwareError, AdditionalSense::new(0x44, 0));
    for _ in 0..2 {
        let command = net.expect_command();
        assert_eq!(command.cdb[0], opcode::INQUIRY);
        net.respond(&command, &[], Status::CheckCondition, &broken);
    }
    assert_eq!(net.expect_command().cdb[0], opcode::SERVICE_ACTION_IN_16);
}
