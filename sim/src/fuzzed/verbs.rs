//! A queue pair over an RDMA device that errs as it is told.

/// See [`iser_transport::verbs::hostile_device`].
pub fn verbs_queue(data: &[u8]) {
    iser_transport::verbs::hostile_device(data);
}
