"""The gateware of sigbit and the contract that hardware and software share (:mod:`sigbit_hw.spec`)."""
