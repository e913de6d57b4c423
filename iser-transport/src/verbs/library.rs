//! libibverbs and librdmacm, loaded when they are first needed.
//!
//! One binary runs with and without RDMA: where the libraries are absent, it says which packages bring them.
#![allow(unsafe_code, reason = "symbols of shared libraries have the types that their headers say")]

use std::ffi::c_void;
use std::sync::OnceLock;

use super::abi::{Ibverbs, Rdmacm};

/// The RDMA libraries cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("RDMA libraries are not installed (libibverbs1 librdmacm1 ibverbs-providers): {0}")]
pub struct LibraryError(String);

/// Both libraries. They stay loaded until the process ends.
pub(super) struct Library {
    pub(super) verbs: Ibverbs,
    pub(super) cm: Rdmacm,
    /// What the functions are in.
    _loaded: Vec<libloading::Library>,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Library({} functions)", Ibverbs::NAMES.len() + Rdmacm::NAMES.len())
    }
}

impl Library {
    /// The libraries, loaded by the first call.
    pub(super) fn get() -> Result<&'static Self, LibraryError> {
        static LIBRARY: OnceLock<Result<Library, LibraryError>> = OnceLock::new();
        LIBRARY.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, LibraryError> {
        let mut loaded = Vec::new();
        #[cfg(feature = "ibverbs")]
        let verbs = super::linked::functions();
        #[cfg(not(feature = "ibverbs"))]
        let verbs = {
            let library = open("libibverbs.so.1")?;
            // SAFETY: the symbols of this version of the library have the types of its headers, which `abi` repeats.
            let verbs = unsafe { Ibverbs::load(|name| symbol(&library, name)) }?;
            loaded.push(library);
            verbs
        };
        let library = open("librdmacm.so.1")?;
        // SAFETY: as above.
        let cm = unsafe { Rdmacm::load(|name| symbol(&library, name)) }?;
        loaded.push(library);
        Ok(Self { verbs, cm, _loaded: loaded })
    }
}

fn open(name: &str) -> Result<libloading::Library, LibraryError> {
    // SAFETY: the initialisers of rdma-core's libraries have no precondition.
    unsafe { libloading::Library::new(name) }.map_err(|error| explain(&error))
}

/// The default version of a symbol.
fn symbol(library: &libloading::Library, name: &'static str) -> Result<*mut c_void, LibraryError> {
    // SAFETY: an address is all that is taken from the symbol here.
    let found = unsafe { library.get::<*mut c_void>(name) };
    match found.map(|symbol| *symbol) {
        Ok(address) if !address.is_null() => Ok(address),
        Ok(_) => Err(LibraryError(format!("{name} is empty"))),
        Err(error) => Err(explain(&error)),
    }
}

/// What the loader said, which lies beneath what the crate says.
fn explain(error: &libloading::Error) -> LibraryError {
    let said = std::error::Error::source(error).map(ToString::to_string);
    LibraryError(said.unwrap_or_else(|| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_library_names_the_packages() {
        let error = open("libthere-is-no-such.so.9").unwrap_err().to_string();
        assert!(error.contains("libibverbs1 librdmacm1 ibverbs-providers"), "{error}");
        assert!(error.contains("libthere-is-no-such.so.9"), "{error}");
    }

    #[test]
    fn present_libraries_have_every_function() {
        // Where they are not installed, the error is the sentence of the other test.
        match Library::get() {
            Ok(library) => assert_eq!(format!("{library:?}"), "Library(32 functions)"),
            Err(error) => assert!(error.to_string().starts_with("RDMA libraries are not installed"), "{error}"),
        }
    }
}
