//! Tests of all policies: rules, resident sets by hand, twins.

/// Calls a macro with every policy and every value of its parameter that the tests take.
macro_rules! cases {
    ([$apply:ident] $($reference:ident $test:ident: $name:literal = $kind:ident
        $({ $parameter:ident: $usual:literal } $(, $other:ident: $value:literal)*)?;)*) => {
        $(
            $apply! { $reference $test: PolicyKind::$kind $({ $parameter: $usual })? }
            $($($apply! { $reference $other: PolicyKind::$kind { $parameter: $value } })*)?
        )*
    };
}

mod resident_sets;
mod suite;
mod twins;
