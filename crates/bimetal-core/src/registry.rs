//! The registry's form: domains of families of operations. Tests, benchmarks and listings all walk it.

use crate::op::Definition;

/// A field of operations.
pub struct Domain {
    /// The domain's name.
    pub name: &'static str,
    /// The operations of each family.
    pub families: &'static [&'static [&'static dyn Definition]],
}

impl Domain {
    /// The operations of the domain.
    pub fn ops(&self) -> impl Iterator<Item = &'static dyn Definition> {
        self.families.iter().flat_map(|family| family.iter().copied())
    }
}

/// Declares a domain from the folders of its families; `pub` for one that is a crate of its own.
#[macro_export]
macro_rules! domain {
    (pub $($rest:tt)*) => { $crate::domain!(@ pub, $($rest)*); };
    (@ $visibility:vis, $name:literal: $($family:ident),* $(,)?) => {
        $(pub mod $family;)*
        $(pub use $family::*;)*

        /// The families of this domain.
        #[doc(hidden)]
        $visibility static DOMAIN: $crate::registry::Domain =
            $crate::registry::Domain { name: $name, families: &[$($family::OPS),*] };
    };
    ($name:literal: $($rest:tt)*) => { $crate::domain!(@ pub(crate), $name: $($rest)*); };
}
