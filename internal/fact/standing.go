package fact

// Standing is one object as its room knows it, for whoever compares that with the machine. Record is what the room keeps
// of it.
type Standing[Record any] struct {
	ID     string
	Record Record // zero when Broken
	Busy   bool   // it is being made, changed or removed
	Broken error  // why its record cannot be read; Unsupported when it is of another crid
}
