//! When every expert is wanted next.

use moe_trace::ExpertSet;

use crate::requests::Requests;

/// The requests of each expert in order, and how far they were stepped through.
#[derive(Clone, Debug)]
pub(super) struct NextUse {
    /// Requests of each expert in ascending order, one expert after the other.
    positions: Vec<u32>,
    /// The next request of each expert among its positions, and the end of its positions.
    next: Vec<(usize, usize)>,
}

/// The next use of an expert that is never wanted again: farther than any.
pub(super) const NEVER: u32 = u32::MAX;

impl NextUse {
    /// Indexes all requests: a next use is the number of a request.
    ///
    /// # Panics
    /// If there are `u32::MAX` requests or more.
    pub(super) fn new(requests: &Requests) -> NextUse {
        NextUse::with_values(requests, |request, _| request)
    }

    /// Indexes all requests so that a next use also tells apart experts of one request: the one that is wanted sooner
    /// again after it has the lower value.
    ///
    /// # Panics
    /// If the requests have `u32::MAX` members or more.
    pub(super) fn ranked(requests: &Requests) -> NextUse {
        let starts: Vec<usize> = (0..requests.len())
            .scan(0, |end, request| {
                let start = *end;
                *end += requests.members(request).len();
                Some(start)
            })
            .collect();
        let mut ranks = vec![0; starts.last().map_or(0, |start| start + requests.members(requests.len() - 1).len())];
        let mut next = vec![usize::MAX; requests.universe()];
        let mut order: Vec<usize> = Vec::new();
        for (request, &start) in starts.iter().enumerate().rev() {
            let members = requests.members(request);
            order.clear();
            order.extend(0..members.len());
            order.sort_by_key(|&at| next[members[at] as usize]);
            for (rank, &at) in order.iter().enumerate() {
                ranks[start + at] = start + rank;
                next[members[at] as usize] = start + rank;
            }
        }
        NextUse::with_values(requests, |request, at| ranks[starts[request] + at])
    }

    /// Gives the member at `at` of a request the value `value(request, at)`, which must ascend with the requests.
    fn with_values(requests: &Requests, value: impl Fn(usize, usize) -> usize) -> NextUse {
        let mut ends = vec![0usize; requests.universe() + 1];
        let members = || {
            (0..requests.len())
                .flat_map(|request| requests.members(request).iter().enumerate().map(move |(at, &e)| (request, at, e)))
        };
        for (_, _, expert) in members() {
            ends[expert as usize + 1] += 1;
        }
        for expert in 1..ends.len() {
            ends[expert] += ends[expert - 1];
        }
        let next = ends.windows(2).map(|window| (window[0], window[1])).collect();
        let mut positions = vec![0; ends[requests.universe()]];
        for (request, at, expert) in members() {
            let place = &mut ends[expert as usize];
            let value = u32::try_from(value(request, at)).ok().filter(|&value| value < NEVER);
            positions[*place] = value.expect("positions below u32::MAX");
            *place += 1;
        }
        NextUse { positions, next }
    }

    /// Goes on to the next request, which wants `wanted`.
    pub(super) fn on_request(&mut self, wanted: &ExpertSet) {
        for expert in wanted.iter() {
            let (next, end) = &mut self.next[expert];
            *next = (*next + 1).min(*end);
        }
    }

    /// When an expert is wanted next after the current request.
    pub(super) fn of(&self, expert: usize) -> u32 {
        let (next, end) = self.next[expert];
        self.positions[next..end].first().copied().unwrap_or(NEVER)
    }
}
