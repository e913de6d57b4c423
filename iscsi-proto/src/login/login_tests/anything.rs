//! Both machines against anything.

use proptest::prelude::*;

use super::*;

fn arbitrary_text() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        8 => (0usize..Key::ALL.len()).prop_map(|at| Key::ALL[at].name().to_string()),
        1 => "[A-Za-z][A-Za-z0-9.#-]{0,6}",
    ];
    let value = prop_oneof![
        Just(HOST.to_string()),
        Just(DISK.to_string()),
        Just("Yes".to_string()),
        Just("No".to_string()),
        Just("None".to_string()),
        Just("CHAP".to_string()),
        Just("CHAP,None".to_string()),
        Just("5".to_string()),
        Just("alice".to_string()),
        Just("0x00112233445566778899aabbccddeeff".to_string()),
        Just("4096".to_string()),
        Just("Reject".to_string()),
        Just("NotUnderstood".to_string()),
        Just("Irrelevant".to_string()),
        Just("Discovery".to_string()),
        "[ -~]{0,12}",
    ];
    let pairs = proptest::collection::vec((key, value), 0..6);
    prop_oneof![
        6 => pairs.prop_map(|pairs| {
            pairs.into_iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
    ]
}

prop_compose! {
    fn arbitrary_bhs(opcode: u8)(known: bool, flags: u8, stage in 0u8..16, mut bytes in any::<[u8; 16]>(),
        fixed: bool) -> Bhs {
        let mut bhs = Bhs([0; 48]);
        if !fixed {
            bhs.0[8..24].copy_from_slice(&bytes);
        }
        bytes.fill(0);
        bhs.0[0] = if known { opcode } else { flags };
        // Mostly flags that make sense.
        bhs.0[1] = if known { flags & 0xc0 | stage } else { flags };
        bhs
    }
}

proptest! {
    #[test]
    fn no_pdus_panic_a_target(guarded: bool, introduce: bool, pdus in proptest::collection::vec((arbitrary_bhs(0x43),
        arbitrary_text()), 0..12)) {
        let authority = if guarded { TestAuthority::guarded() } else { TestAuthority::open() };
        let mut target = target();
        let mut over = false;
        if introduce {
            let stage = if guarded { SECURITY } else { OPERATIONAL };
            let first = LoginRequest { isid: [0; 6], itt: 0, cid: 0, ..request(stage, None) };
            target.handle_request(&first, &names(if guarded { "AuthMethod=CHAP" } else { "" }), &authority);
        }
        for (bhs, data) in &pdus {
            let Some(reply) = target.handle_pdu(bhs, data, &authority) else { continue };
            prop_assert!(reply.data.len() <= 8192);
            match reply.outcome {
                LoginOutcome::Continue => prop_assert!(!over && reply.response.status == LoginStatus::SUCCESS),
                LoginOutcome::Established(grant) => {
                    prop_assert!(!over && !guarded, "nobody guesses the secret");
                    prop_assert!(grant.parameters.first_burst_length <= grant.parameters.max_burst_length);
                    over = true;
                }
                LoginOutcome::Refused(error) => {
                    prop_assert!(reply.response.status.class() != 0 && !error.to_string().is_empty());
                    over = true;
                }
            }
        }
    }

    #[test]
    fn no_pdus_panic_an_initiator(way in 0u8..4, pdus in proptest::collection::vec((arbitrary_bhs(0x23),
        arbitrary_text()), 0..12)) {
        let credentials = match way { 0 | 1 => None, 2 => chap(SECRET, None), _ => chap(SECRET, proof()) };
        let mutual = way == 3;
        let mut initiator = InitiatorLogin::new(InitiatorLoginConfig { itt: 0, credentials,
            begin_with_security: way == 1, ..wishes() }, [9; 64]);
        initiator.first_request();
        for (bhs, data) in &pdus {
            let Ok(response) = LoginResponse::parse(bhs) else { continue };
            match initiator.handle_response(&response, data) {
                Ok(InitiatorStep::Send(request, data)) => {
                    prop_assert!(data.len() <= 8192);
                    prop_assert_eq!(LoginRequest::parse(&request.emit()).unwrap(), request);
                }
                Ok(InitiatorStep::Established(_)) => prop_assert!(!mutual, "nobody guesses the secret"),
                Ok(InitiatorStep::Redirected { .. }) => {}
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
