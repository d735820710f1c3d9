//! Reads numbers that JSON cannot write: what is not a number is `null` there.

use std::fmt;

use serde::de::{DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Reads a value in which `null` in the place of a real number is NaN, if the format is one for people; others write NaN.
pub(super) fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    if deserializer.is_human_readable() {
        T::deserialize(NullIsNan(deserializer))
    } else {
        T::deserialize(deserializer)
    }
}

/// A deserializer, visitor or access whose real numbers may be null, at every depth.
struct NullIsNan<T>(T);

/// A visitor of one real number.
struct Number<V>(V);

macro_rules! forward {
    ($($method:ident($($name:ident: $type:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self $(, $name: $type)*, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($name,)* NullIsNan(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for NullIsNan<D> {
    type Error = D::Error;

    forward! {
        deserialize_any() deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
        deserialize_i128() deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_char() deserialize_str() deserialize_string() deserialize_bytes() deserialize_byte_buf()
        deserialize_option() deserialize_unit() deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str) deserialize_seq() deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize) deserialize_map()
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) deserialize_identifier()
        deserialize_ignored_any()
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Number(visitor))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Number(visitor))
    }
}

macro_rules! visit {
    ($($method:ident($type:ty))*) => {$(
        fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Number<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    visit! { visit_i64(i64) visit_u64(u64) visit_f64(f64) }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_f64(f64::NAN)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_f64(f64::NAN)
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NullIsNan<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    visit! {
        visit_bool(bool) visit_i64(i64) visit_i128(i128) visit_u64(u64) visit_u128(u128) visit_f64(f64) visit_char(char)
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String) visit_bytes(&[u8])
        visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(NullIsNan(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(NullIsNan(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(NullIsNan(seq))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(NullIsNan(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(NullIsNan(data))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for NullIsNan<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(NullIsNan(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for NullIsNan<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(NullIsNan(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for NullIsNan<A> {
    type Error = A::Error;

    // Keys are never null, and JSON reads numbers from their text.
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(NullIsNan(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for NullIsNan<A> {
    type Error = A::Error;
    type Variant = NullIsNan<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        self.0.variant_seed(seed).map(|(variant, data)| (variant, NullIsNan(data)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for NullIsNan<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(NullIsNan(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(len, NullIsNan(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.struct_variant(fields, NullIsNan(visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Serialize;

    use super::*;
    use crate::intervals::resampled::Intervals;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Part {
        Plain(f64),
        Pair(f64, u64),
        Named { figure: f64 },
        Unit,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Report {
        figure: f64,
        list: Vec<f64>,
        map: BTreeMap<usize, Vec<f32>>,
        maybe: Option<f64>,
        none: Option<f64>,
        pair: (f64, String),
        parts: Vec<Part>,
    }

    #[test]
    fn null_is_not_a_number_at_every_depth_and_nothing_else_is() {
        let report = |figure: f64| Report {
            figure,
            list: vec![1.0, figure],
            map: BTreeMap::from([(7, vec![0.5, f32::NAN])]),
            maybe: Some(2.0),
            none: None,
            pair: (figure, "x".to_owned()),
            parts: vec![Part::Plain(figure), Part::Pair(figure, 3), Part::Named { figure }, Part::Unit],
        };
        let mut value = report(1.0);
        value.map.clear();
        let intervals = Intervals { low: report(f64::NAN), high: report(4.0), value };
        let text = serde_json::to_string(&intervals).unwrap();
        let read: Intervals<Report> = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert!(read.low.figure.is_nan() && read.low.list[1].is_nan() && read.low.pair.0.is_nan());
        assert_eq!((read.high.list, read.low.none, read.low.pair.1.as_str()), (vec![1.0, 4.0], None, "x"));
        // What was measured is a number.
        let broken = text.replacen("\"figure\":1.0", "\"figure\":null", 1);
        assert!(serde_json::from_str::<Intervals<Report>>(&broken).is_err());
        let plain: Intervals<Vec<f64>> = serde_json::from_str(r#"{"value":[1],"low":[null],"high":[2.5]}"#).unwrap();
        assert!(plain.low[0].is_nan() && plain.high == [2.5]);
        let error = serde_json::from_str::<Intervals<Vec<f64>>>(r#"{"value":[1],"low":["x"],"high":[2]}"#);
        assert!(error.is_err());
    }
}
