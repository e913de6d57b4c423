//! Lent memory that is being sent: nobody writes it until the connection has heard how much of it was.

use std::sync::Arc;
use std::task::Context;
use std::thread::JoinHandle;

use iscsi_memory::{ReceiveSlice, ReceiveWindow, Region, RegionSlice, SendList, SendSlice};
use iscsi_proto::connection::{Connection, StreamConnection, StreamEnd};
use iscsi_proto::time::Instant;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::{Clock, drive};

const LEN: usize = 8192;

/// Sends a part of a region, and has it written by another thread before it has heard that it was sent.
struct Lender {
    region: Arc<Region>,
    slice: RegionSlice,
    sent: usize,
    writer: Option<JoinHandle<()>>,
}

impl StreamConnection for Lender {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut [] }
    }
    fn handle_received(&mut self, _: usize, _: Instant) {}
    fn handle_stream_end(&mut self, _: StreamEnd, _: Instant) {}
    fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>) {
        list.push(SendSlice::Lent(&self.slice, self.sent, LEN));
    }
    fn take_sent(&mut self, n: usize) {
        self.sent += n;
        let region = self.region.clone();
        let writer = std::thread::spawn(move || region.write(0, &[2; LEN]));
        // A writer that waits lets no new reader in.
        let other = self.region.slice(0, LEN);
        loop {
            let header = [0];
            let mut list = SendList::default();
            list.push(SendSlice::Private(&header));
            list.push(SendSlice::Lent(&other, 0, LEN));
            let _held = list.hold();
            assert!(!writer.is_finished(), "it was written while the connection still looks at it");
            if list.len() == header.len() {
                break;
            }
            std::thread::yield_now();
        }
        // It waits, or it writes: a read that meets a writer waits for what it writes.
        for _ in 0..100 {
            let mut now = [0; LEN];
            self.region.read(0, &mut now);
            assert_eq!(now, [1; LEN], "it is written while the connection still looks at it");
            std::thread::yield_now();
        }
        self.writer = Some(writer);
    }

    /// Nothing is held any more: a connection may write what it sends.
    fn go_on(&mut self, _: Instant) {
        self.region.write(0, &[3; LEN]);
    }
}

impl Connection for Lender {
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    fn handle_timeout(&mut self, _: Instant) {}
    fn handle_wake(&mut self, _: &mut Context<'_>, _: Instant) {}
    fn is_finished(&self) -> bool {
        self.sent == LEN
    }
}

#[tokio::test]
async fn nobody_writes_what_is_being_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, peer) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let region = Region::heap(LEN);
    region.write(0, &[1; LEN]);
    let mut lender = Lender { slice: region.slice(0, LEN), region, sent: 0, writer: None };
    drive(ours.unwrap(), &mut lender, Clock::process()).await.unwrap();
    lender.writer.unwrap().join().unwrap();
    let mut came = vec![0; LEN];
    peer.unwrap().0.read_exact(&mut came).await.unwrap();
    assert_eq!(came, [1; LEN]);
}
