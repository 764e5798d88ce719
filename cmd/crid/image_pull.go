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
	"golang.org/x/term"

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

Without credentials crid takes those of its own auth file, if any. Credentials are read from a file, from stdin, or from the
terminal, which does not show them; never from the command line, where everybody on the machine could read them. They are sent
to crid over its socket and kept nowhere.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			auth, err := from.read(cmd.Context(), keyboard{cmd.InOrStdin(), cmd.ErrOrStderr()}, args[0])
			if err != nil {
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
	c.Flags().StringVarP(&from.username, "username", "u", "", "user, whose password the terminal asks for, or with --password-stdin")
	c.Flags().BoolVar(&from.passwordStdin, "password-stdin", false, "read the password from stdin; with --username")
	c.MarkFlagsMutuallyExclusive("authfile", "creds", "username")
}

// maxSecret bounds what is read of a secret, in bytes.
const maxSecret = 64 << 10

func (from *credentials) read(ctx context.Context, k keyboard, ref string) (*admin.Auth, error) {
	switch {
	case from.authfile != "":
		return fromAuthFile(from.authfile, ref)
	case from.username != "" || from.passwordStdin:
		return from.withPassword(ctx, k)
	case from.creds == "":
		return nil, nil
	case from.creds == "-":
		text, err := k.secret(ctx, "USER:PASSWORD")
		return pair(text, err)
	}
	file, err := os.Open(from.creds)
	if err != nil && strings.Contains(from.creds, ":") { // what it says is not repeated
		return nil, errors.New("--creds names a file that holds USER:PASSWORD, or - for stdin; credentials on the command line could be read by everybody on the machine")
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	defer file.Close()
	text, err := secret(file)
	return pair(text, err)
}

func (from *credentials) withPassword(ctx context.Context, k keyboard) (*admin.Auth, error) {
	switch {
	case from.username == "":
		return nil, errors.New("--password-stdin: whose password it is says --username")
	case k.terminal() == nil && !from.passwordStdin:
		return nil, errors.New("--username: stdin is no terminal that could ask for the password; --password-stdin reads it from there")
	}
	password, err := k.secret(ctx, "Password for "+plain(from.username))
	return &admin.Auth{Username: from.username, Password: password}, err
}

// pair is USER:PASSWORD, if that could be read.
func pair(text string, err error) (*admin.Auth, error) {
	if err != nil {
		return nil, err
	}
	user, password, ok := strings.Cut(text, ":")
	if !ok {
		return nil, errors.New("read credentials: they are not of the form USER:PASSWORD")
	}
	return &admin.Auth{Username: user, Password: password}, nil
}

// keyboard is where somebody may be asked.
type keyboard struct {
	in  io.Reader
	out io.Writer // for what is asked
}

// terminal is nil when in is none.
func (k keyboard) terminal() *os.File {
	if file, ok := k.in.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		return file
	}
	return nil
}

// secret reads a line: of a terminal without showing it, else one that is all of the input.
func (k keyboard) secret(ctx context.Context, asked string) (string, error) {
	file := k.terminal()
	if file == nil {
		return secret(k.in)
	}
	modes, err := term.GetState(int(file.Fd()))
	if err != nil {
		return "", fmt.Errorf("read credentials: %w", err)
	}
	ctx, unhook := untilSignalled(ctx)
	defer unhook()
	fmt.Fprintf(k.out, "%s: ", asked)
	defer fmt.Fprintln(k.out)
	line, failed := make(chan string, 1), make(chan error, 1)
	go func() { // ends with the line, or else with the program
		if raw, err := term.ReadPassword(int(file.Fd())); err != nil {
			failed <- fmt.Errorf("read credentials: %w", err)
		} else {
			line <- string(raw)
		}
	}()
	select {
	case text := <-line:
		return secret(strings.NewReader(text))
	case err := <-failed:
		return "", err
	case <-ctx.Done():
		return "", ended(ctx, errors.Join(context.Cause(ctx), term.Restore(int(file.Fd()), modes)))
	}
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
