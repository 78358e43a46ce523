# A client of zkv in Perl. It needs ZMQ::FFI and Data::MessagePack:
#
#   apt-get install libzmq-ffi-perl libdata-messagepack-perl libzmq3-dev
#   perl client.pl [tcp://127.0.0.1:5757]

use v5.36;
package Zkv;
use Data::MessagePack;
use ZMQ::FFI qw(ZMQ_REQ ZMQ_RCVTIMEO);

my @WAITS_MS = (250, 500, 1000, 2000, 4000);    # for a reply, attempt by attempt
my ($context, $msgpack) = (ZMQ::FFI->new, Data::MessagePack->new->utf8);

sub new ($class, $endpoint) {
    open my $random, '<:raw', '/dev/urandom' or die "/dev/urandom: $!\n";
    read $random, my $name, 16;
    my $self = bless { endpoint => $endpoint, session => unpack('H*', $name), seq => 0 }, $class;
    $self->write(op => 'txn', then => []);    # opens the session; may be done twice
    return $self;
}

# A write happens once, however often it is sent.
sub write ($self, %request) {
    return $self->ask(%request, session => $self->{session}, seq => ++$self->{seq});
}

# The reply; that of a failure has `error` and `message`.
sub ask ($self, %request) {
    for my $wait (@WAITS_MS) {
        my $reply = $self->exchange($msgpack->pack(\%request), $wait);
        return $reply if $reply;
        $request{retry} = Data::MessagePack::true() if ($request{seq} // 1) > 1;
    }
    die "no reply: whether it was done is not known\n";
}

sub exchange ($self, $body, $wait) {
    my $socket = $self->{socket} //= $context->socket(ZMQ_REQ);
    $socket->die_on_error(0);
    $socket->set_linger(0);
    $socket->set(ZMQ_RCVTIMEO, 'int', $wait);
    $socket->connect($self->{endpoint}) unless $self->{connected}++;
    $socket->send($body);
    my $reply = $socket->recv;
    return $msgpack->unpack($reply) unless $socket->has_error;
    $socket->close;    # a REQ that waits for a reply cannot send: the next is a new one
    return $self->@{qw(socket connected)} = ();
}

package main;
my $zkv = Zkv->new($ARGV[0] // 'tcp://127.0.0.1:5757');
my $ada = { name => 'Ada', langs => [qw(en fr)] };
my $put = $zkv->write(op => 'put', key => 'user:1', value => $ada);
say "put user:1: version $put->{version}";
my $user = $zkv->ask(op => 'get', key => 'user:1')->{value};
say "get user:1: $user->{name} speaks ", join ', ', $user->{langs}->@*;
my $bob = $zkv->write(op => 'put', key => 'user:1', value => 'Bob', if => { version => 0 });
say "put user:1 if version 0: $bob->{error}, it has version $bob->{version}";
say 'incr visits: ', $zkv->write(op => 'incr', key => 'visits')->{value};
my $nobody = $zkv->ask(op => 'get', key => 'nobody');
say "get nobody: $nobody->{error}, $nobody->{message}" unless $nobody->{ok};
