//! The URLs and portal addresses that people type.

use initiator_core::{Portal, Url};

/// Any text. What can be read means the same when it is printed and read again.
pub fn url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(portal) = text.parse::<Portal>() {
        assert_eq!(portal.to_string().parse(), Ok(portal));
    }
    match text.parse::<Url>() {
        Ok(url) => assert_eq!(url.to_string_with_secrets().parse(), Ok(url)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
