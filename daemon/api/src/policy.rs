//! What must be encrypted, said of who pods are.

use crate::words::words;

words! {
    /// What happens to a flow that has no proven tunnel; the stricter, the greater.
    pub enum PolicyMode {
        /// It passes: somebody has said why it may.
        Exempt = "exempt",
        /// It passes, and is counted.
        Prefer = "prefer",
        /// It is dropped, and counted.
        Require = "require",
    }
}
