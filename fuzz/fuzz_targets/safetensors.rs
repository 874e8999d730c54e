//! safetensors: an archive or an error, and each of its tensors or an error; what was read is written and read back.
#![no_main]

use bimetal_core::io::safetensors::{Archive, to_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(archive) = Archive::from_bytes(bytes.to_vec()) else { return };
    let tensors: Vec<_> = archive.names().filter_map(|name| Some((name, archive.tensor(name).ok()?))).collect();
    let named: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let texts: Vec<_> = archive.metadata().iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
    let again = Archive::from_bytes(to_bytes(&named, &texts).unwrap()).unwrap();
    assert_eq!(archive.metadata(), again.metadata());
    for (name, tensor) in named {
        let back = again.tensor(name).unwrap();
        assert_eq!(tensor.spec(), back.spec());
        assert_eq!(tensor.host_bytes(), back.host_bytes());
    }
});
