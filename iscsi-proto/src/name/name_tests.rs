use super::*;
use alloc::string::ToString;
use proptest::prelude::*;

fn name(text: &str) -> Result<String, NameError> {
    IscsiName::new(text).map(|name| name.to_string())
}

#[test]
fn the_examples_of_the_rfcs_are_names() {
    // RFC 7143 4.2.7.4 to 4.2.7.6
    for (text, kind) in [
        ("iqn.2001-04.com.example:storage:diskarrays-sn-a8675309", NameKind::Iqn),
        ("iqn.2001-04.com.example", NameKind::Iqn),
        ("iqn.2001-04.com.example:storage.tape1.sys1.xyz", NameKind::Iqn),
        ("eui.02004567A425678D", NameKind::Eui),
        ("naa.52004567BA64678D", NameKind::Naa),
        ("naa.62004567BA64678D0123456789ABCDEF", NameKind::Naa),
    ] {
        let parsed = IscsiName::new(text).unwrap();
        assert_eq!(parsed.kind(), kind);
        assert_eq!(parsed.as_str(), text.to_lowercase());
        assert_eq!(text.to_uppercase().parse(), Ok(parsed));
    }
}

#[test]
fn wrong_names_are_told_apart() {
    let error = |text: &str| name(text).unwrap_err();
    assert_eq!(error(""), NameError::Empty);
    assert_eq!(error("disk1"), NameError::Kind("disk1".into()));
    for date in
        ["iqn.2026-13.example", "iqn.2026-00.example", "iqn.26-11.example", "iqn.", "iqn.2026-11", "iqn.202x-01.a"]
    {
        assert_eq!(error(date), NameError::Date(date.into()));
    }
    for authority in ["iqn.2026-11.", "iqn.2026-11.:disk", "iqn.2026-11.a..b", "iqn.2026-11.-a:b", "iqn.2026-11.a.:b"] {
        assert_eq!(error(authority), NameError::Authority(authority.into()));
    }
    assert_eq!(error("eui.0200"), NameError::Eui("eui.0200".into()));
    assert_eq!(error("eui.02004567a425678x"), NameError::Eui("eui.02004567a425678x".into()));
    assert_eq!(error("naa.5200"), NameError::Naa("naa.5200".into()));
    for character in ['_', '/', ' ', '\0', '@', '\u{7f}', ','] {
        let text = format!("iqn.2026-11.example:a{character}b");
        assert_eq!(error(&text), NameError::Character { character });
    }
}

#[test]
fn the_length_limit_is_223_bytes() {
    let longest = format!("iqn.2026-11.example:{}", "x".repeat(223 - 20));
    assert!(name(&longest).is_ok());
    assert_eq!(name(&(longest + "x")), Err(NameError::TooLong(224)));
    assert_eq!(name(&"x".repeat(100_000)), Err(NameError::TooLong(100_000)));
}

#[cfg(feature = "std")]
#[test]
fn unicode_is_prepared_by_the_profile() {
    let with = |tail: &str| name(&format!("iqn.2026-11.example:{tail}"));
    let expect = |tail: &str| Ok(format!("iqn.2026-11.example:{tail}"));
    assert_eq!(with("Ä"), expect("ä")); // B.2
    assert_eq!(with("a\u{308}"), expect("ä")); // form KC composes
    assert_eq!(with("Ｄ１"), expect("d1")); // and maps compatible characters
    assert_eq!(with("ß"), expect("ss"));
    assert_eq!(with("a\u{ad}b"), expect("ab")); // B.1: nothing
    assert_eq!(with("\u{3002}"), Err(NameError::Character { character: '\u{3002}' })); // RFC 3722 6.1
    assert_eq!(with("\u{ff0f}"), Err(NameError::Character { character: '/' })); // full width solidus
    assert!(matches!(with("a\u{a0}b"), Err(NameError::Character { .. }))); // C.1.2
    assert!(matches!(with("\u{e000}"), Err(NameError::Character { .. }))); // C.3
    assert!(matches!(with("\u{202e}"), Err(NameError::Character { .. }))); // C.8
    assert_eq!(with("אב"), Err(NameError::Bidirectional)); // RFC 3454 6: starts left to right
    assert!(with("日本語").is_ok());
}

#[cfg(not(feature = "std"))]
#[test]
fn without_tables_only_ascii_is_taken() {
    assert_eq!(name("iqn.2026-11.example:ä"), Err(NameError::AsciiOnly('ä')));
}

#[test]
fn made_up_names_are_names_and_follow_the_seed() {
    let make = |prefix: &str, seed: &[u8]| IscsiName::generate(prefix, seed).map(|name| name.to_string());
    let one = make("iqn.2026-11.example.ramdisk", b"one").unwrap();
    assert_eq!(one.len(), "iqn.2026-11.example.ramdisk".len() + 13);
    assert_ne!(one, make("iqn.2026-11.example.ramdisk", b"two").unwrap());
    assert!(make("iqn.2026-11.example:host", b"").unwrap().starts_with("iqn.2026-11.example:host."));
    assert!(make("iqn.2026-11.example:host-", b"").unwrap().starts_with("iqn.2026-11.example:host-"));
    assert!(matches!(make("ramdisk", b""), Err(NameError::Kind(_))));
    assert!(matches!(make("iqn.ramdisk", b""), Err(NameError::Date(_))));
}

proptest! {
    #[test]
    fn a_prepared_name_is_its_own_preparation(text in "(iqn\\.2026-[01][0-9]\\.|eui\\.|naa\\.)?\\PC{0,40}") {
        if let Ok(name) = IscsiName::new(&text) {
            prop_assert!(name.as_str().len() <= MAX_NAME);
            prop_assert_eq!(IscsiName::new(name.as_str()), Ok(name));
        }
    }

    #[test]
    fn any_text_is_a_name_or_not(text: String) {
        let _ = IscsiName::new(&text);
    }
}
