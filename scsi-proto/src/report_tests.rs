use super::*;
use alloc::vec;
use proptest::prelude::*;

#[test]
fn a_lun_list_stands_as_drawn() {
    let data = luns([Lun::ZERO, Lun::new(300).unwrap()]);
    assert_eq!(data, [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
    assert_eq!(luns_length(&data[..16]), 24);
    assert_eq!(parse_luns(&data[..16]).unwrap(), [Ok(Lun::ZERO)]);
    assert!(parse_luns(&data[..7]).is_err());
}

#[test]
fn one_command_stands_as_drawn() {
    let answer = OneCommand {
        support: Support::Standard,
        usage: vec![0, 0, 0, 0, 0, 0],
        timeouts: Some(CommandTimeouts { specific: 0, nominal: 0, recommended: 30 }),
    };
    let data = answer.to_bytes();
    assert_eq!(data, [0, 0x83, 0, 6, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30]);
    assert_eq!(OneCommand::parse(&data), Ok(answer));
    assert_eq!(OneCommand::NOT_SUPPORTED.to_bytes(), [0, 1, 0, 0]);
}

#[test]
fn task_management_functions_stand_as_drawn() {
    let all = SupportedTmfs {
        abort_task: true,
        abort_task_set: true,
        clear_task_set: true,
        logical_unit_reset: true,
        ..SupportedTmfs::default()
    };
    assert_eq!(all.to_bytes(false), [0xd8, 0, 0, 0]);
    assert_eq!(all.to_bytes(true).len(), 16);
    assert_eq!(SupportedTmfs::parse(&all.to_bytes(true)), Ok(all));
}

fn commands() -> impl Strategy<Value = Vec<SupportedCommand>> {
    let timeouts = any::<Option<(u8, u32, u32)>>().prop_map(|timeouts| {
        timeouts.map(|(specific, nominal, recommended)| CommandTimeouts { specific, nominal, recommended })
    });
    let command =
        (any::<(u8, Option<u16>, u16)>(), timeouts).prop_map(|((opcode, service_action, cdb_length), timeouts)| {
            SupportedCommand { opcode, service_action, cdb_length, timeouts }
        });
    proptest::collection::vec(command, 0..10)
}

fn groups() -> impl Strategy<Value = Vec<TargetPortGroup>> {
    let group = (any::<(u16, bool, u8, u8)>(), 0u8..16, proptest::collection::vec(any::<u16>(), 0..6)).prop_map(
        |((group, preferred, supported, status_code), state, ports)| TargetPortGroup {
            group,
            state,
            preferred,
            supported,
            status_code,
            ports,
        },
    );
    proptest::collection::vec(group, 0..6)
}

proptest! {
    #[test]
    fn reports_round_trip(
        numbers in proptest::collection::vec(0u16..0x4000, 0..20),
        commands in commands(),
        groups in groups(),
        seconds: Option<u8>,
        (bits, usage, flags) in any::<(u8, Vec<u8>, [u8; 4])>(),
    ) {
        let list: Vec<_> = numbers.into_iter().map(|number| Lun::new(number).unwrap()).collect();
        let expected = list.iter().copied().map(Ok).collect();
        prop_assert_eq!(parse_luns(&luns(list)), Ok(expected));
        prop_assert_eq!(parse_all_commands(&all_commands(commands.iter().copied())), Ok(commands));
        let data = target_port_groups(&groups, seconds);
        prop_assert_eq!(parse_target_port_groups(&data, seconds.is_some()), Ok(groups));
        let one = OneCommand { support: Support::from_bits(bits), usage, timeouts: None };
        prop_assert_eq!(OneCommand::parse(&one.to_bytes()), Ok(one));
        let functions = SupportedTmfs::parse(&flags).unwrap();
        prop_assert_eq!(SupportedTmfs::parse(&functions.to_bytes(false)), Ok(functions));
    }

    #[test]
    fn any_bytes_parse_or_not(bytes: Vec<u8>, extended: bool) {
        let _ = (parse_luns(&bytes), parse_all_commands(&bytes), OneCommand::parse(&bytes));
        let _ = (SupportedTmfs::parse(&bytes), parse_target_port_groups(&bytes, extended), luns_length(&bytes));
    }
}
