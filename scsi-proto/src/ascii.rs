//! Fixed-width ASCII fields such as the vendor identification.

use core::fmt;

/// A left-aligned, space-padded field of `N` printable ASCII bytes (SPC-5 4.3.1).
///
/// ```
/// use scsi_proto::Ascii;
/// let vendor = Ascii::<8>::new("EXAMPLE");
/// assert_eq!(vendor.as_bytes(), b"EXAMPLE ");
/// assert_eq!(vendor.to_string(), "EXAMPLE");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ascii<const N: usize>([u8; N]);

impl<const N: usize> Ascii<N> {
    /// Takes the first `N` characters of `text`; a character outside 20h to 7Eh becomes a question mark.
    pub fn new(text: &str) -> Self {
        let mut field = [b' '; N];
        for (to, from) in field.iter_mut().zip(text.chars()) {
            *to = if matches!(from, ' '..='~') { from as u8 } else { b'?' };
        }
        Self(field)
    }

    /// The field as a device sent it, whatever it holds.
    pub const fn from_bytes(bytes: [u8; N]) -> Self {
        Self(bytes)
    }

    /// The field as it goes on the wire.
    pub const fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> Default for Ascii<N> {
    /// All spaces.
    fn default() -> Self {
        Self([b' '; N])
    }
}

impl<const N: usize> fmt::Display for Ascii<N> {
    /// The text without its padding; bytes that are not printable ASCII show as dots.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.trim_ascii_end() {
            let shown = if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' };
            fmt::Write::write_char(f, shown)?;
        }
        Ok(())
    }
}

impl<const N: usize> fmt::Debug for Ascii<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
