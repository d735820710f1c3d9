//! The baseline: an interpolated byte n-gram.

use crate::error::{Result, check};

/// A byte-level n-gram language model with interpolated Kneser-Ney smoothing.
///
/// # Formula
/// With the history `h` of the last `n - 1` bytes and `h'`, `h` without its first byte:
///
/// `P_n(w | h) = (max(c(hw) - D, 0) + (D_1 N_1(h) + D_2 N_2(h) + D_3 N_3(h)) P_{n-1}(w | h')) / c(h)`
///
/// where `D` is `D_1`, `D_2` or `D_3` for a count of 1, 2, or 3 and more, `N_i(h)` is how many bytes follow `h` that
/// often and `c(h)` sums the counts of `h`. At the highest order `c` counts occurrences, below it counts the different
/// bytes that precede. The discounts are those of the count-of-counts `n_i` of an order: `D_i = i - (i + 1) Y n_{i+1} /
/// n_i`, `Y = n_1 / (n_1 + 2 n_2)`, or 0.5 where that is not between 0 and `i`. A history that never occurred is
/// skipped; below order 1 stands `1 / 256`.
///
/// A document is preceded by zero bytes.
///
/// # Complexity
/// An n-gram of at most 8 bytes is one `u64`, so an order is a sorted list: at most 12 bytes of memory per byte of text
/// and order, `O(order * log(bytes))` a prediction.
///
/// Stanley F. Chen and Joshua Goodman, *An empirical study of smoothing techniques for language modeling*, Computer
/// Speech and Language 13 (1999), section 3 (modified Kneser-Ney).
///
/// ```
/// use moe_testbed::ByteNgram;
/// let model = ByteNgram::train(["abracadabra"], 3)?;
/// assert!(model.probability(b"ab", b'r') > 0.5);
/// let sum: f64 = (0..=255).map(|byte| model.probability(b"ab", byte)).sum();
/// assert!((sum - 1.0).abs() < 1e-12);
/// # Ok::<(), moe_testbed::TestbedError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ByteNgram {
    /// Tables of the orders 1, 2, ...
    orders: Vec<Table>,
}

/// The n-grams of one order.
#[derive(Clone, Debug)]
struct Table {
    /// The n-grams, the last byte lowest, ascending.
    keys: Vec<u64>,
    counts: Vec<u32>,
    /// What is taken from a count of 1, 2, and 3 or more.
    discounts: [f64; 3],
}

impl ByteNgram {
    /// The longest n-gram.
    pub const MAX_ORDER: usize = 8;

    /// Counts the n-grams of documents.
    ///
    /// # Errors
    /// [`TestbedError::Option`](crate::TestbedError::Option) if `order` is not in 1..=8.
    pub fn train<'a>(documents: impl IntoIterator<Item = &'a str>, order: usize) -> Result<ByteNgram> {
        check("order", order, (1..=Self::MAX_ORDER).contains(&order), "1..=8")?;
        let mask = u64::MAX >> (64 - 8 * order);
        let mut windows = Vec::new();
        for document in documents {
            let mut window = 0;
            windows.extend(document.bytes().map(|byte| {
                window = (window << 8 | u64::from(byte)) & mask;
                window
            }));
        }
        let mut orders = vec![Table::count(windows)];
        for shorter in (1..order).rev() {
            let mask = u64::MAX >> (64 - 8 * shorter);
            let longer = &orders[orders.len() - 1];
            orders.push(Table::count(longer.keys.iter().map(|key| key & mask).collect()));
        }
        orders.reverse();
        Ok(ByteNgram { orders })
    }

    /// The longest n-gram that the model knows.
    pub fn order(&self) -> usize {
        self.orders.len()
    }

    /// The probability of `byte` behind `history`; only the last `order - 1` bytes count, a shorter history stands at
    /// the start of a document.
    pub fn probability(&self, history: &[u8], byte: u8) -> f64 {
        let history = history.iter().fold(0, |all, &byte| all << 8 | u64::from(byte));
        self.probability_after(history, byte)
    }

    /// Bits that the model needs for a document.
    pub fn bits(&self, document: &str) -> f64 {
        let mut history = 0;
        let bits = document.bytes().map(|byte| {
            let probability = self.probability_after(history, byte);
            history = history << 8 | u64::from(byte);
            -probability.log2()
        });
        bits.sum()
    }

    fn probability_after(&self, history: u64, byte: u8) -> f64 {
        let mut probability = 1.0 / 256.0;
        for (shorter, table) in self.orders.iter().enumerate() {
            let history = history & ((1 << (8 * shorter)) - 1);
            match table.interpolate(history, byte, probability) {
                Some(interpolated) => probability = interpolated,
                // No longer history occurred either.
                None => break,
            }
        }
        probability
    }
}

impl Table {
    /// Sorts n-grams and counts equal ones.
    fn count(mut windows: Vec<u64>) -> Table {
        windows.sort_unstable();
        let (mut keys, mut counts) = (Vec::new(), Vec::<u32>::new());
        for group in windows.chunk_by(|a, b| a == b) {
            keys.push(group[0]);
            counts.push(u32::try_from(group.len()).unwrap_or(u32::MAX));
        }
        let mut of_counts = [0.0; 5];
        counts.iter().filter(|&&count| count <= 4).for_each(|&count| of_counts[count as usize] += 1.0);
        let mut table = Table { keys, counts, discounts: [0.0; 3] };
        table.discounts = discounts(of_counts);
        table
    }

    /// The probability of this order from that of the order below; nothing if the history never occurred.
    fn interpolate(&self, history: u64, byte: u8, below: f64) -> Option<f64> {
        let start = self.keys.partition_point(|&key| key >> 8 < history);
        let (mut total, mut own, mut freed) = (0.0, 0.0, 0.0);
        for (&key, &count) in self.keys[start..].iter().zip(&self.counts[start..]) {
            if key >> 8 != history {
                break;
            }
            let discount = self.discounts[count.min(3) as usize - 1];
            total += f64::from(count);
            freed += discount;
            if key & 0xff == u64::from(byte) {
                own = f64::from(count) - discount;
            }
        }
        (total > 0.0).then(|| (own + freed * below) / total)
    }
}

/// Discounts from how many n-grams have the counts 1, 2, 3, 4; 0.5 where too little text leaves nothing to estimate
/// from.
fn discounts(of_counts: [f64; 5]) -> [f64; 3] {
    let y = of_counts[1] / (of_counts[1] + 2.0 * of_counts[2]);
    [(1, 1.0), (2, 2.0), (3, 3.0)].map(|(count, i)| {
        let discount = i - (i + 1.0) * y * of_counts[count + 1] / of_counts[count];
        if discount > 0.0 && discount < i { discount } else { 0.5 }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// "aab", order 2. Bigrams: \0a 1, aa 1, ab 1; no count is 2, so `D_1 = 1 - 0 = 1` takes all and 0.5 stands in.
    /// Unigrams by preceding bytes: a 2 (\0, a), b 1 (a); `Y = 1 / (1 + 2)`, `D_1 = 1 - 2 Y = 1/3`, and as no count is
    /// 3, 0.5 stands in for `D_2`.
    #[test]
    fn two_bigrams_by_hand() {
        let model = ByteNgram::train(["aab"], 2).unwrap();
        let freed = 1.0 / 3.0 + 0.5;
        let (p1_a, p1_b) = ((1.5 + freed / 256.0) / 3.0, (2.0 / 3.0 + freed / 256.0) / 3.0);
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        close(model.probability(b"a", b'a'), (0.5 + p1_a) / 2.0);
        close(model.probability(b"a", b'b'), (0.5 + p1_b) / 2.0);
        close(model.probability(b"", b'a'), 0.5 + 0.5 * p1_a);
        close(model.probability(b"z", b'b'), p1_b);
        let product = model.probability(b"", b'a') * model.probability(b"a", b'b');
        close(model.bits("ab"), -product.log2());
    }

    #[test]
    fn longer_histories_help_on_repetitive_text() {
        let text = "the cat sat on the mat. the dog sat on the log. ".repeat(20);
        let bits = [1, 2, 4].map(|order| ByteNgram::train([text.as_str()], order).unwrap().bits("the dog sat on"));
        assert!(bits.is_sorted_by(|a, b| a > b), "{bits:?}");
    }

    #[test]
    fn orders_out_of_range_are_errors() {
        assert_eq!(ByteNgram::train([""], 0).unwrap_err().to_string(), "order is 0, allowed are 1..=8");
        assert!(ByteNgram::train([""], 9).is_err());
        assert_eq!(ByteNgram::train([], 8).unwrap().probability(b"x", b'y'), 1.0 / 256.0);
    }

    /// The formula with maps of byte strings.
    struct Naive(Vec<HashMap<Vec<u8>, f64>>);

    impl Naive {
        fn train(text: &str, order: usize) -> Naive {
            let padded = [&vec![0; order - 1], text.as_bytes()].concat();
            let mut orders = vec![HashMap::new()];
            for window in padded.windows(order) {
                *orders[0].entry(window.to_vec()).or_insert(0.0) += 1.0;
            }
            for n in 1..order {
                let mut preceded = HashMap::new();
                for longer in orders[n - 1].keys() {
                    *preceded.entry(longer[1..].to_vec()).or_insert(0.0) += 1.0;
                }
                orders.push(preceded);
            }
            orders.reverse();
            Naive(orders)
        }

        fn probability(&self, history: &[u8], byte: u8) -> f64 {
            let padded = [&[0; 8], history].concat();
            self.0.iter().enumerate().fold(1.0 / 256.0, |below, (shorter, counts)| {
                let history = &padded[padded.len() - shorter..];
                let of_counts = |count: f64| counts.values().filter(|&&c| c == count).count() as f64;
                let n = [0.0, of_counts(1.0), of_counts(2.0), of_counts(3.0), of_counts(4.0)];
                let discount = |count: f64| discounts(n)[if count > 2.0 { 2 } else { usize::from(count > 1.0) }];
                let followers = || counts.iter().filter(|(key, _)| key.starts_with(history)).map(|(_, &count)| count);
                let total: f64 = followers().sum();
                if total == 0.0 {
                    return below;
                }
                let own = counts.get(&[history, &[byte]].concat()).map_or(0.0, |&count| count - discount(count));
                (own + followers().map(discount).sum::<f64>() * below) / total
            })
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_model(text in "[abc]{1,60}", history in "[abcd]{0,9}", order in 1..=8usize) {
            let (fast, naive) = (ByteNgram::train([text.as_str()], order).unwrap(), Naive::train(&text, order));
            for byte in *b"abcde" {
                let (fast, naive) = (fast.probability(history.as_bytes(), byte), naive.probability(history.as_bytes(), byte));
                prop_assert!((fast - naive).abs() < 1e-12, "{fast} {naive}");
            }
        }

        #[test]
        fn probabilities_sum_to_one(text in "[abc\\x00é]{0,60}", history in "[abc\\x00é]{0,9}", order in 1..=8usize) {
            let model = ByteNgram::train([text.as_str()], order).unwrap();
            let probabilities = (0..=255).map(|byte| model.probability(history.as_bytes(), byte));
            prop_assert!(probabilities.clone().all(|p| p > 0.0));
            prop_assert!((probabilities.sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }
}
