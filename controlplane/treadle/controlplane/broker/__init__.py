"""How jobs travel: the broker port, its RabbitMQ adapter and its in-memory twin."""
