//! npy: a tensor or an error; what was read is written and read back the same.
#![no_main]

use bimetal_core::io::npy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tensor) = npy::from_bytes(bytes) else { return };
    let again = npy::from_bytes(&npy::to_bytes(&tensor).unwrap()).unwrap();
    assert_eq!(tensor.spec(), again.spec());
    assert_eq!(tensor.host_bytes(), again.host_bytes());
});
