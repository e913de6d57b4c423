//! An initiator's and a target's mover with a connection between them: random commands end with equal bytes and no buffer lost, also when the connection
//! does not last.

mod link;
mod pair;

use iscsi_proto::parameters::Parameters;
use iser_transport::iwarp::IwarpConfig;
use iser_transport::loopback::{EndConfig, Faults, LoopbackConfig};
use iser_transport::mover::IserCounters;
use pair::{Operation, Pair};
use proptest::prelude::*;

fn operation() -> impl Strategy<Value = Operation> {
    let length = || prop_oneof![Just(0usize), Just(512), 1usize..600, 1usize..40_000, Just(70_000)];
    (length(), length(), any::<[bool; 4]>()).prop_map(|(write, read, [lent, sense, twice, both])| {
        let (write, read) = if both || write == 0 || read == 0 { (write, read) } else { (write, 0) };
        Operation { write, read, lent, sense, twice }
    })
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    proptest::collection::vec(operation(), 1..9)
}

fn parameters() -> impl Strategy<Value = Parameters> {
    (any::<[bool; 3]>(), prop_oneof![Just(8192u32), 512u32..9000], prop_oneof![Just(65_536u32), 512u32..9000]).prop_map(
        |([initial_r2t, immediate, hello], segment, first_burst)| Parameters {
            initial_r2t,
            immediate_data: immediate,
            iser_hello_required: hello,
            rdma_extensions: true,
            max_recv_data_segment_length: 8192,
            peer_max_recv_data_segment_length: segment,
            first_burst_length: first_burst,
            ..Parameters::default()
        },
    )
}

fn plain(write: usize, read: usize) -> Operation {
    Operation { write, read, lent: true, sense: false, twice: false }
}

/// What both ends count for one command that moves so many bytes out of and into lent memory.
fn counted(operation: Operation) -> (IserCounters, IserCounters) {
    let mut pair = Pair::new(link::loopback(&LoopbackConfig::default(), 1), &Parameters::default(), vec![operation]);
    pair.run();
    pair.finish();
    pair.counters()
}

// What is above the immediate limit is never copied, in neither direction.
#[test]
fn large_data_are_not_copied() {
    for (operation, written, read) in [(plain(70_000, 0), 0, 70_000), (plain(0, 70_000), 70_000, 0)] {
        let (initiator, target) = counted(operation);
        assert_eq!((initiator.copied, target.copied), (0, 0));
        assert_eq!((target.written, target.read), (written, read));
    }
}

// What is within it travels with its command.
#[test]
fn small_writes_are_one_message_each_way() {
    let (initiator, target) = counted(plain(4096, 0));
    assert_eq!((target.read, target.immediate), (0, 4096));
    // A login PDU each, and the command with its response.
    assert_eq!((initiator.sends, target.sends), (2, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn commands_move_their_bytes_whatever_the_network(
        parameters in parameters(),
        operations in operations(),
        seed: u64,
    ) {
        // Networks of all kinds, but nothing goes wrong.
        let config = LoopbackConfig { faults: Faults::default(), ..LoopbackConfig::hostile(seed) };
        let mut pair = Pair::new(link::loopback(&config, seed), &parameters, operations);
        pair.run();
        prop_assert_eq!(pair.left(), 0);
        pair.finish();
    }

    #[test]
    fn buffers_come_back_however_the_connection_ends(operations in operations(), seed: u64) {
        let mut pair = Pair::new(link::loopback(&LoopbackConfig::hostile(seed), seed), &Parameters::default(), operations);
        pair.run();
        pair.finish();
    }

    #[test]
    fn small_queue_pairs_only_make_it_slower(operations in operations(), seed: u64) {
        let mut end = EndConfig::default();
        end.limits.work = 2;
        end.limits.transfer = 5000;
        end.read_depth = 1;
        let config = LoopbackConfig { active: end.clone(), passive: end, ..LoopbackConfig::default() };
        let mut pair = Pair::new(link::loopback(&config, seed), &Parameters::default(), operations);
        pair.run();
        prop_assert_eq!(pair.left(), 0);
        pair.finish();
    }

    #[test]
    fn commands_move_their_bytes_over_iwarp(
        parameters in parameters(),
        operations in operations(),
        crc: bool,
        revision_two: bool,
        chunks in proptest::collection::vec(prop_oneof![1usize..60, 1usize..5000, Just(100_000)], 1..20),
        seed: u64,
    ) {
        let config = IwarpConfig { crc, revision_two, seed, ..IwarpConfig::default() };
        let mut pair = Pair::new(link::iwarp(&config, chunks), &parameters, operations);
        pair.run();
        prop_assert_eq!(pair.left(), 0);
        pair.finish();
    }
}
