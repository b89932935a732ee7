module aggios.app/flow

go 1.23

require aggios.app/clients/go v0.0.0

replace aggios.app/clients/go => ../../generated/go
