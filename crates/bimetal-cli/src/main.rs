//! The `bimetal` command.

fn main() {
    for domain in bimetal::registry::DOMAINS {
        for op in domain.ops() {
            println!("{} {}", domain.name, op.name());
        }
    }
}
