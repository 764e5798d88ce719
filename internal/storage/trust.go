package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"go.podman.io/image/v5/signature"
)

func (s *Images) policyPath() string { return hostFile(s.cfg.PolicyPath, "policy.json") }

// policyFor is the file with the policy that holds for a namespace: its own, else the host's; empty when there is none.
func (s *Images) policyFor(namespace string) (string, error) {
	if s.cfg.PolicyDir == "" || namespace == "" {
		return s.policyPath(), nil
	}
	file, err := perNamespace(s.cfg.PolicyDir, namespace, ".json")
	if err != nil {
		return "", err
	}
	switch _, err := os.Stat(file); {
	case err == nil:
		return file, nil
	case errors.Is(err, fs.ErrNotExist):
		return s.policyPath(), nil
	default: // were it the host's instead, one who fills a disk could choose
		return "", fmt.Errorf("look for the signature policy of namespace %s: %w", namespace, err)
	}
}

// loadPolicy reads a signature policy; without any, everything is accepted.
func loadPolicy(path string) (*signature.PolicyContext, error) {
	if path == "" {
		return acceptAll()
	}
	policy, err := signature.NewPolicyFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read signature policy %s: it is configured but does not exist", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read signature policy: %w", err)
	}
	return policyContext(policy)
}

// acceptAll is the policy for what was checked before.
func acceptAll() (*signature.PolicyContext, error) {
	return policyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
}

func policyContext(policy *signature.Policy) (*signature.PolicyContext, error) {
	ctx, err := signature.NewPolicyContext(policy)
	if err != nil {
		return nil, fmt.Errorf("use signature policy: %w", err)
	}
	return ctx, nil
}
