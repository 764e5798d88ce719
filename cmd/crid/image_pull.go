package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.podman.io/image/v5/docker/reference"
	dockerconfig "go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/admin"
)

func pullImage(f *flags) *cobra.Command {
	var o form
	var from credentials
	c := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image as the kubelet would, and show how far each layer is",
		Long: `Pull an image as the kubelet would: by the same configuration, policy and mirrors. What is under way already is joined. The bars,
or without a terminal a line for each layer that is done, go to stderr; the image's id goes to stdout.

Without credentials crid takes those of its own auth file, if any. Credentials are read from a file or from stdin, never from the
command line, where everybody on the machine could read them; they are sent to crid over its socket and kept nowhere.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			auth, err := from.read(cmd.InOrStdin(), args[0])
			if err = errors.Join(err, o.check()); err != nil {
				return err
			}
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				show := newBars(cmd.ErrOrStderr(), o.quiet)
				var pulled *admin.Image
				stream, err := c.PullImage(ctx, &admin.PullImageRequest{Ref: args[0], Auth: auth})
				if err := drain(c, stream, err, func(p *admin.PullImageResponse) error {
					show.draw(p.GetProgress())
					pulled = p.GetImage()
					return nil
				}); err != nil {
					return err
				}
				return o.write(cmd.OutOrStdout(), viewOf(pulled), func(t *tabwriter.Writer) { fmt.Fprintln(t, pulled.GetId()) })
			})
		},
	}
	o.add(c, asTable, asJSONs, asYAML)
	c.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
	from.add(c)
	return c
}

// credentials says where the credentials of a pull are read from.
type credentials struct {
	authfile, creds, username string
	passwordStdin             bool
}

func (from *credentials) add(c *cobra.Command) {
	c.Flags().StringVar(&from.authfile, "authfile", "", "file of credentials, as docker login and podman login write it")
	c.Flags().StringVar(&from.creds, "creds", "", "file that holds USER:PASSWORD, or - for stdin")
	c.Flags().StringVarP(&from.username, "username", "u", "", "user; with --password-stdin")
	c.Flags().BoolVar(&from.passwordStdin, "password-stdin", false, "read the password from stdin; with --username")
	c.MarkFlagsMutuallyExclusive("authfile", "creds", "username")
	c.MarkFlagsRequiredTogether("username", "password-stdin")
}

// maxSecret bounds what is read of a secret, in bytes.
const maxSecret = 64 << 10

func (from *credentials) read(stdin io.Reader, ref string) (*admin.Auth, error) {
	switch {
	case from.authfile != "":
		return fromAuthFile(from.authfile, ref)
	case from.passwordStdin:
		password, err := secret(stdin)
		return &admin.Auth{Username: from.username, Password: password}, err
	case from.creds == "":
		return nil, nil
	}
	in := stdin
	if from.creds != "-" {
		file, err := os.Open(from.creds)
		if err != nil && strings.Contains(from.creds, ":") { // what it says is not repeated
			return nil, errors.New("--creds names a file that holds USER:PASSWORD, or - for stdin; credentials on the command line could be read by everybody on the machine")
		}
		if err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		defer file.Close()
		in = file
	}
	text, err := secret(in)
	if err != nil {
		return nil, err
	}
	user, password, ok := strings.Cut(text, ":")
	if !ok {
		return nil, errors.New("read credentials: they are not of the form USER:PASSWORD")
	}
	return &admin.Auth{Username: user, Password: password}, nil
}

// secret reads a line, and nothing else, to the end of its input.
func secret(in io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(bufio.NewReader(in), maxSecret))
	if err != nil {
		return "", fmt.Errorf("read credentials: %w", err)
	}
	text := strings.TrimRight(string(raw), "\r\n")
	if text == "" || strings.ContainsAny(text, "\r\n\x00") {
		return "", errors.New("read credentials: they are not one line of text")
	}
	return text, nil
}

func fromAuthFile(path, ref string) (*admin.Auth, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	found, err := dockerconfig.GetCredentialsForRef(&types.SystemContext{AuthFilePath: path}, named)
	if err != nil {
		return nil, fmt.Errorf("read credentials of %s: %w", path, err)
	}
	if found == (types.DockerAuthConfig{}) {
		return nil, fmt.Errorf("%s has no credentials for %s", path, reference.Domain(named))
	}
	return &admin.Auth{Username: found.Username, Password: found.Password, IdentityToken: found.IdentityToken}, nil
}
