//! npz: tensors or an error; what was read is written and read back the same.
#![no_main]

use bimetal_core::io::npz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tensors) = npz::from_bytes(bytes) else { return };
    let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    if named.iter().any(|(name, _)| name.is_empty()) {
        return;
    }
    let again = npz::from_bytes(&npz::to_bytes(&named).unwrap()).unwrap();
    for ((a, x), (b, y)) in tensors.iter().zip(&again) {
        assert_eq!((a, x.spec()), (b, y.spec()));
        assert_eq!(x.host_bytes(), y.host_bytes());
    }
});
