package fact

// Labels are the SELinux labels of a pod or container; empty without SELinux.
type Labels struct {
	Process string `json:"process,omitempty"`
	Mount   string `json:"mount,omitempty"` // of the files and mounts that it may write
}
